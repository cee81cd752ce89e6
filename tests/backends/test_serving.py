"""Where an engine answers is read from its command; engines are asked to stop alone, other programs are not."""

from __future__ import annotations

import pytest

from backends.command import detect
from backends.errors import ConfigError
from backends.plan import Kind, Main, PortOpen
from backends.serving import RANKS, VLLM_ON_RAY, main_process, ranks


def process(line: str, kind: Kind = Kind.SERVER) -> Main:
    return main_process(detect(line.split()), kind)


def refusal(line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        process(line)
    return caught.value.text()


@pytest.mark.parametrize(
    ("line", "engine", "port"),
    [
        ("vllm serve m", "vllm", 8000),
        ("python3 -m vllm.entrypoints.openai.api_server --model m", "vllm", 8000),
        ("python3 -m vllm.entrypoints.cli.main serve m", "vllm", 8000),
        ("sglang serve --model-path m", "sglang", 30000),
        ("python3 -m sglang.launch_server --model-path m", "sglang", 30000),
        ("trtllm-serve m", "tensorrt-llm", 8000),
        ("trtllm-serve serve m", "tensorrt-llm", 8000),
        ("python3 -m tensorrt_llm.commands.serve m", "tensorrt-llm", 8000),
    ],
)
def test_without_a_port_it_is_the_engines_own(line: str, engine: str, port: int) -> None:
    assert process(line) == Main(
        tuple(line.split()),
        Kind.SERVER,
        PortOpen("localhost", port, engine),
        asked_alone=True,
        ranks=RANKS.get(engine, ()),
    )


@pytest.mark.parametrize(
    ("flags", "port"),
    [
        ("--port 8080", 8080),
        ("--port=8080", 8080),
        ("-tp 2 --port 8080 --seed 1", 8080),
        ("--port 1 --port=2", 2),
        ("-- --port 8080", 8000),
        ("--por 9000", 9000),
        ("--data-parallel-rpc-port 13345", 8000),
    ],
)
@pytest.mark.parametrize(
    ("start", "engine"),
    [
        ("vllm serve m", "vllm"),
        ("numactl -N 0 vllm serve m", "vllm"),
        ("env PORT=1 python3 -m vllm.entrypoints.openai.api_server", "vllm"),
    ],
)
def test_the_port_is_the_last_that_the_command_names(start: str, engine: str, flags: str, port: int) -> None:
    assert process(f"{start} {flags}").serves == PortOpen("localhost", port, engine)


def test_a_wrappers_options_are_not_the_engines() -> None:
    made = process("nsys profile --port 1 --host 10.0.0.9 vllm serve m")
    assert made.serves == PortOpen("localhost", 8000, "vllm")


@pytest.mark.parametrize(
    ("flags", "host"),
    [
        ("", "localhost"),
        ("--host 0.0.0.0", "localhost"),
        ("--host=0.0.0.0", "localhost"),
        ("--host ::", "localhost"),
        ("--host=", "localhost"),
        ("--host localhost", "localhost"),
        ("--host 127.0.0.1", "127.0.0.1"),
        ("--host=10.0.0.7", "10.0.0.7"),
        ("--host fd00::7", "fd00::7"),
        ("--host my-lws-0.my-lws", "my-lws-0.my-lws"),
        ("--host 10.0.0.7 --host 0.0.0.0", "localhost"),
    ],
)
@pytest.mark.parametrize(
    ("start", "engine"),
    [
        ("vllm serve m", "vllm"),
        ("python3 -m sglang.launch_server --model-path m", "sglang"),
        ("trtllm-serve m", "tensorrt-llm"),
    ],
)
def test_an_engine_that_listens_everywhere_is_asked_at_localhost_and_another_where_it_listens(
    start: str, engine: str, flags: str, host: str
) -> None:
    assert process(f"{start} --port 9000 {flags}").serves == PortOpen(host, 9000, engine)


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve m --uds /tmp/vllm.sock",
        "vllm serve m --uds=/tmp/vllm.sock --port 8000",
        "vllm serve m --headless",
        "vllm serve m --headless --port 8000",
        "vllm serve m --head",
        "vllm serve m --ud /tmp/vllm.sock",
        "vllm serve m --port 0",  # any free one: nobody knows which
        "vllm serve m --port=8000 --port=0",
        "python3 -m dynamo.vllm --model m",
        "python3 -m dynamo.vllm --model m --port 8000",
        "python3 -m dynamo.sglang --model-path m",
        "python3 -m dynamo.trtllm --model-path m",
    ],
)
def test_an_engine_without_a_port_that_can_be_known_serves_nowhere_and_is_asked_alone_nonetheless(line: str) -> None:
    main = process(line)
    assert (main.argv, main.serves, main.asked_alone) == (tuple(line.split()), None, True)


@pytest.mark.parametrize(
    "line",
    [
        "python3 train.py",
        "my-server --port 8000 --host 10.0.0.7",
        "my-server --port http",  # its own affair
        "my-server --port",
        "sleep infinity",
        "sleep",
        "python3 -m http.server",
        "torchrun --nproc-per-node 8 train.py --port 8000",
        "vllm bench serve --port x",
    ],
)
def test_a_program_that_is_no_known_engine_serves_nowhere_and_is_not_asked_alone(line: str) -> None:
    assert process(line) == Main(tuple(line.split()), Kind.SERVER, serves=None, asked_alone=False)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("line", ["vllm serve m", "sleep 1"])
def test_the_kind_is_as_given(line: str, kind: Kind) -> None:
    assert process(line, kind).kind is kind


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--port http", "--port is 'http'\n  expected: a whole number, 0 or more"),
        ("--port=", "--port is ''\n  expected: a whole number, 0 or more"),
        ("--port -1", "--port is '-1'\n  expected: a whole number, 0 or more"),
        ("--port=80.5", "--port is '80.5'\n  expected: a whole number, 0 or more"),
        ("--port 80 --port ²", "--port is '²'\n  expected: a whole number, 0 or more"),
        ("--port", "--port has no value\n  expected: --port VALUE"),
        ("--port --seed 1", "--port has no value\n  expected: --port VALUE"),
        ("--host", "--host has no value\n  expected: --host VALUE"),
    ],
)
@pytest.mark.parametrize("start", ["vllm serve m", "sglang serve", "trtllm-serve m"])
def test_a_port_or_host_that_the_engine_would_refuse_is_refused_here(start: str, flags: str, message: str) -> None:
    assert refusal(f"{start} {flags}") == message


@pytest.mark.parametrize(
    ("line", "port", "host"),
    [
        ("vllm serve m --por 9000 --ho 10.0.0.7", 9000, "10.0.0.7"),
        ("sglang serve --po 9000 --ho 10.0.0.7", 9000, "10.0.0.7"),
        ("trtllm-serve m --por 9000 --ho 10.0.0.7", 8000, "localhost"),  # no prefixes
    ],
)
def test_a_prefix_counts_where_the_engines_own_parser_takes_it(line: str, port: int, host: str) -> None:
    serves = process(line).serves
    assert serves is not None
    assert (serves.port, serves.host) == (port, host)


def test_the_processes_that_a_server_cannot_do_without_are_named() -> None:
    assert "::EngineCore" in process("vllm serve m").ranks
    assert "sglang::scheduler" in process("sglang serve --model-path m").ranks
    assert process("sleep 1").ranks == ()


def test_a_jobs_processes_may_end_before_it() -> None:
    assert process("vllm serve m", Kind.JOB).ranks == ()


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve m --enable-expert-parallel --enable-eplb --enable-elastic-ep",
        "vllm serve m --data-parallel-external-lb --enable-fault-tolerance",
        "vllm serve m --no-enable-fault-tolerance --enable-fault-t",
        "sglang serve --model-path m --elastic-ep-backend mooncake",
        "sglang serve --model-path m --elastic-ep-b mooncake",
    ],
)
def test_an_engine_that_outlives_its_ranks_is_not_ended_with_them(line: str) -> None:
    assert process(line).ranks == ()
    assert ranks(detect(line.split()), Kind.SERVER, VLLM_ON_RAY) == ()


@pytest.mark.parametrize("switch", ["enable-elastic-ep", "enable-fault-tolerance"])
def test_an_engine_whose_switch_is_off_in_the_end_is_ended_with_its_ranks(switch: str) -> None:
    assert process(f"vllm serve m --{switch} --no-{switch}").ranks == RANKS["vllm"]
