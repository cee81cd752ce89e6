"""The engine is found in the argument list, behind wrappers, and never inside shell text."""

from __future__ import annotations

import shlex

import pytest

from backends.command import Command, detect
from backends.errors import ConfigError


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        detect(argv)
    return caught.value.text()


@pytest.mark.parametrize(
    ("line", "engine", "arguments"),
    [
        ("vllm serve m -tp 16", "vllm", "m -tp 16"),
        ("/opt/venv/bin/vllm serve m", "vllm", "m"),
        ("numactl --interleave=all vllm serve m", "vllm", "m"),
        ("env A=B C=D vllm serve m", "vllm", "m"),
        ("uv run --no-sync vllm serve m", "vllm", "m"),
        ("nsys profile -o /tmp/x /usr/bin/vllm serve m --port 80", "vllm", "m --port 80"),
        ("python3 -m vllm.entrypoints.openai.api_server --model m", "vllm", "--model m"),
        ("python3 -u -m vllm.entrypoints.openai.api_server --model m", "vllm", "--model m"),
        ("/usr/bin/python3.12 -X dev -m vllm.entrypoints.cli.main serve m", "vllm", "m"),
        ("python3 /src/vllm/entrypoints/openai/api_server.py --model m", "vllm", "--model m"),
        ("python3 -m dynamo.vllm --model m", "vllm", "--model m"),
        ("sglang serve --model-path m", "sglang", "--model-path m"),
        ("python3 -m sglang.launch_server --model-path m --tp 16", "sglang", "--model-path m --tp 16"),
        ("python3 /sgl-workspace/python/sglang/launch_server.py --tp 4", "sglang", "--tp 4"),
        ("trtllm-serve m --tp_size 16", "tensorrt-llm", "m --tp_size 16"),
        ("trtllm-serve serve m --tp_size 16", "tensorrt-llm", "m --tp_size 16"),
        ("python3 -m tensorrt_llm.commands.serve m", "tensorrt-llm", "m"),
        ("torchrun --nproc-per-node 8 train.py", "torchrun", "--nproc-per-node 8 train.py"),
        ("python3 -m torch.distributed.run train.py", "torchrun", "train.py"),
        ("vllm serve", "vllm", ""),
        ("torchrun", "torchrun", ""),
        ("trtllm-serve", "tensorrt-llm", ""),
        ("python3 -mvllm.entrypoints.openai.api_server --model m", "vllm", "--model m"),
        ("python3 -um vllm.entrypoints.openai.api_server --model m", "vllm", "--model m"),
        ("python3 -uBmdynamo.vllm --model m", "vllm", "--model m"),
        ("python3 -mvllm.entrypoints.cli.main serve m", "vllm", "m"),
    ],
)
def test_an_engine_is_found_through_wrappers_and_its_arguments_begin_behind_it(
    line: str, engine: str, arguments: str
) -> None:
    command = detect(line.split())
    assert command.engine == engine
    assert command.arguments == tuple(arguments.split())
    assert command.argv == tuple(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "python3 train.py",
        "vllm bench serve",
        "vllm --version",
        "vllm",
        "sglang generate",
        "python3 -m vllm.entrypoints.cli.main bench",
        "python3 -m vllm.entrypoints.cli.main",
        "python3 -m http.server",
        "python3 -m",
        "python3 -mhttp.server",
        "python3 -mvllm.entrypoints.cli.main bench",
        "run -xyzmvllm.entrypoints.openai.api_server",
        "run --m vllm.entrypoints.openai.api_server",
        "-m vllm.entrypoints.openai.api_server",
        "my-vllm serve m",
        "echo torchrunner",
        "sleep infinity",
    ],
)
def test_a_command_that_starts_no_engine_is_generic(line: str) -> None:
    argv = tuple(line.split())
    assert detect(argv) == Command(argv, "generic", 0, 1)


@pytest.mark.parametrize("start", ["-m ", "-m", "-um "])
def test_which_module_it_is_is_known_however_it_is_joined(start: str) -> None:
    dynamo = detect(f"python3 {start}dynamo.vllm --model m".split())
    assert (dynamo.is_dynamo, dynamo.is_api_server_module) == (True, False)
    module = detect(f"python3 {start}vllm.entrypoints.openai.api_server".split())
    assert (module.is_dynamo, module.is_api_server_module) == (False, True)


def test_new_arguments_take_the_place_of_the_engines_and_leave_the_wrapper_alone() -> None:
    command = detect(("numactl", "-N", "0", "vllm", "serve", "m", "-tp", "2"))
    assert command == Command(("numactl", "-N", "0", "vllm", "serve", "m", "-tp", "2"), "vllm", 3, 5)
    assert command.with_arguments(("m", "-tp", "16")) == ("numactl", "-N", "0", "vllm", "serve", "m", "-tp", "16")


def test_no_command_at_all_is_refused_with_the_usage() -> None:
    assert refusal() == "there is no command\n  expected: lwsrun start -- COMMAND [ARGUMENT ...]"


# --- shells ---


@pytest.mark.parametrize(
    ("shell", "script", "plain"),
    [
        (["sh", "-c"], "vllm serve m -tp 16", "vllm serve m -tp 16"),
        (["bash", "-lc"], "vllm serve m", "vllm serve m"),
        (["/bin/bash", "-c"], "exec vllm serve m", "vllm serve m"),
        (["bash", "-l", "-c"], "vllm serve m", "vllm serve m"),
        (["bash", "--norc", "-c"], "vllm serve m", "vllm serve m"),
        (["sh", "-ec"], "HF_HOME=/models exec vllm serve m", "vllm serve m"),
        (["sh", "-c"], "cd /work && vllm serve m", "vllm serve m"),
        (["sh", "-c"], "ray start --head; vllm serve m --port 80", "vllm serve m --port 80"),
        (["sh", "-c"], "vllm serve m | tee /tmp/log", "vllm serve m"),
        (["sh", "-c"], "vllm serve 'a model' -tp 2", "vllm serve 'a model' -tp 2"),
        (
            ["sh", "-c"],
            "numactl -N 0 python3 -m sglang.launch_server --tp 16",
            "numactl -N 0 python3 -m sglang.launch_server --tp 16",
        ),
        (["numactl", "-N", "0", "sh", "-c"], "trtllm-serve m", "trtllm-serve m"),
        (["sh", "-c"], "vllm serve 'half", "vllm serve ''\"'\"'half'"),
    ],
)
def test_an_engine_inside_a_shell_is_refused_and_the_plain_form_is_shown(
    shell: list[str], script: str, plain: str
) -> None:
    text = refusal(*shell, script)
    assert text.startswith("the engine is inside a shell: ")
    assert "expected: the plain form, as an argument list" in text
    assert text.splitlines()[-1] == f"  to do: write: lwsrun start -- {plain}"


@pytest.mark.parametrize(
    "shell",
    [
        ["bash", "-euo", "pipefail", "-c"],
        ["bash", "-o", "pipefail", "-c"],
        ["bash", "-e", "-o", "pipefail", "-c"],
        ["bash", "+o", "posix", "-c"],
    ],
    ids=" ".join,
)
def test_a_shell_with_options_that_take_a_value_is_still_a_shell(shell: list[str]) -> None:
    text = refusal(*shell, "vllm serve m")
    assert text.splitlines()[-1] == "  to do: write: lwsrun start -- vllm serve m"


@pytest.mark.parametrize("redirect", ["2>&1 | tee /tmp/log", "> /tmp/log 2>&1", "2>/tmp/log", "2>&1"])
def test_a_redirection_leaves_no_number_behind_in_the_plain_form(redirect: str) -> None:
    text = refusal("sh", "-c", f"vllm serve m -tp 16 {redirect}")
    assert text.splitlines()[-1] == "  to do: write: lwsrun start -- vllm serve m -tp 16"


@pytest.mark.parametrize(
    "script",
    [
        "set -e\nvllm serve m -tp 16\n",
        "ulimit -c 0\nexec vllm serve m -tp 16",
        "vllm serve m \\\n  -tp 16",
        "set -e\nvllm serve m \\\n  -tp \\\n 16\necho done",
    ],
    ids=["a line before", "exec", "a continued line", "all of it"],
)
def test_the_plain_form_of_a_script_of_several_lines_is_its_engine_line_whole(script: str) -> None:
    text = refusal("sh", "-c", script)
    assert text.splitlines()[-1] == "  to do: write: lwsrun start -- vllm serve m -tp 16"


@pytest.mark.parametrize(
    ("script", "plain"),
    [
        ("vllm serve m --port $PORT", "vllm serve m --port '$(PORT)'"),
        ("vllm serve ${MODEL}/v1 -tp $A$B_2.", "vllm serve '$(MODEL)/v1' -tp '$(A)$(B_2).'"),
    ],
)
def test_a_shells_variable_is_shown_in_the_form_that_kubernetes_expands(script: str, plain: str) -> None:
    assert refusal("bash", "-c", script).splitlines()[-1] == (
        f"  to do: write: lwsrun start -- {plain}; Kubernetes itself expands $(NAME) in a container's command and args"
    )


@pytest.mark.parametrize("text", ["$", "a$", "${PORT:-80}", "${", "$1"])
def test_what_kubernetes_has_no_form_for_stays_as_it_was(text: str) -> None:
    last = refusal("bash", "-c", f"vllm serve m '{text}'").splitlines()[-1]
    assert last == f"  to do: write: lwsrun start -- vllm serve m {shlex.quote(text)}"


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "echo hello; sleep 5"],
        ["bash", "/entrypoint.sh"],
        ["bash", "-x", "run.sh", "-c", "vllm serve m"],
        ["sh"],
        ["sh", "-c"],
        ["sh", "-c", "echo 'half"],
    ],
    ids=" ".join,
)
def test_a_shell_without_an_engine_in_its_text_is_a_command_like_any_other(argv: list[str]) -> None:
    assert detect(argv) == Command(tuple(argv), "generic", 0, 1)


def test_the_word_bash_among_an_engines_arguments_is_no_shell() -> None:
    assert detect(["vllm", "serve", "m", "--served-model-name", "bash", "--port", "80"]).engine == "vllm"
