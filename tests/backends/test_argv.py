"""Flags are read as the engine's own argparse reads them, and edited as a list."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backends import argv
from backends.argv import Flag, Found
from backends.errors import ConfigError

TP = Flag("--tensor-parallel-size", ("-tp",), shortest="--te")
NODES = Flag("--nnodes", ("-n",), shortest="--nn")
EXECUTOR = Flag("--distributed-executor-backend")
SWITCH = Flag("--headless", takes_value=False)


def fault_text(tokens: list[str], flag: Flag = TP) -> str:
    with pytest.raises(ConfigError) as caught:
        argv.whole_number(tokens, flag, 1)
    return caught.value.text()


# --- reading ---


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        ([], None),
        (["--model", "m"], None),
        (["-tp", "16"], "16"),
        (["-tp=16"], "16"),
        (["--tensor-parallel-size", "16"], "16"),
        (["--tensor-parallel-size=16"], "16"),
        (["--tensor_parallel_size", "16"], "16"),
        (["--tensor_parallel_size=16"], "16"),
        (["--tensor-parallel_size=16"], "16"),
        (["--tensor-parallel", "16"], "16"),
        (["--tensor_par=16"], "16"),
        (["--te", "16"], "16"),
        (["-tp", "8", "--tensor-parallel-size", "16"], "16"),
        (["--tensor-parallel-size=16", "-tp", "8"], "8"),
        (["--tensor-parallel-size="], ""),
        (["-tp", "-5"], "-5"),
        (["-tp", "-"], "-"),
        (["--model", "m", "-tp", "4", "--port", "80"], "4"),
        (["-tp", "a=b"], "a=b"),
        (["--tensor-parallel-size=a=b"], "a=b"),
    ],
)
def test_a_value_is_found_in_every_form_and_the_last_one_wins(tokens: list[str], value: str | None) -> None:
    assert argv.text(tokens, TP) == value


@pytest.mark.parametrize(
    "token",
    [
        "--t",
        "--tensor",  # too short to be unambiguous
        "--tensor-parallel-size-local",
        "-TP",
        "--TENSOR-PARALLEL-SIZE",
        "-tp16",  # argparse joins a value to one-letter options only
        "tensor-parallel-size",
        "--",
        "-",
        "--tensor-parallel.size",
    ],
)
def test_what_only_looks_like_the_flag_is_not_taken_for_it(token: str) -> None:
    flag = Flag("--tensor-parallel-size", ("-tp",), shortest="--tensor-p")
    assert argv.find([token, "16"], flag) == []


def test_without_a_known_shortest_form_only_the_whole_name_counts() -> None:
    assert argv.text(["--distributed-executor", "ray"], EXECUTOR) is None
    assert argv.text(["--distributed_executor_backend", "ray"], EXECUTOR) == "ray"


def test_underscores_after_a_dot_belong_to_the_users_key() -> None:
    dotted = Flag("--kv-transfer-config.kv_role")
    assert argv.text(["--kv_transfer_config.kv_role", "both"], dotted) == "both"
    assert argv.text(["--kv-transfer-config.kv-role", "both"], dotted) is None


@pytest.mark.parametrize(
    ("tokens", "value"),
    [(["--", "-tp", "16"], None), (["-tp", "8", "--", "-tp", "16"], "8"), (["run", "--", "--te=2"], None)],
)
def test_two_dashes_end_the_options(tokens: list[str], value: str | None) -> None:
    assert argv.text(tokens, TP) == value


def test_every_occurrence_is_reported_with_its_place_width_and_spelling() -> None:
    tokens = ["m", "-tp", "2", "--tensor_parallel_size=4", "--headless", "--te", "8"]
    assert argv.find(tokens, TP) == [
        Found(1, 2, "2", "-tp"),
        Found(3, 1, "4", "--tensor_parallel_size"),
        Found(5, 2, "8", "--te"),
    ]
    assert argv.find(tokens, SWITCH) == [Found(4, 1, None, "--headless")]
    assert argv.last(tokens, TP) == Found(5, 2, "8", "--te")
    assert argv.last(tokens, NODES) is None


def test_a_switch_takes_no_value_from_its_neighbour() -> None:
    assert argv.find(["--headless", "m"], SWITCH) == [Found(0, 1, None, "--headless")]


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (["-tp"], "-tp"),
        (["m", "--tensor-parallel-size"], "--tensor-parallel-size"),
        (["--tensor-parallel-size", "--port", "80"], "--tensor-parallel-size"),
        (["-tp", "-pp", "2"], "-tp"),
        (["-tp", "--"], "-tp"),
    ],
)
def test_a_missing_value_is_a_fault_that_shows_the_flag_and_its_form(tokens: list[str], shown: str) -> None:
    assert fault_text(tokens) == f"{shown} has no value\n  expected: --tensor-parallel-size VALUE"


@pytest.mark.parametrize(
    ("tokens", "value"), [(["-n2"], "2"), (["m", "-n16"], "16"), (["-n", "2"], "2"), (["-n=2"], "2")]
)
def test_a_one_letter_option_may_have_its_value_joined_to_it(tokens: list[str], value: str) -> None:
    assert argv.text(tokens, NODES) == value


@pytest.mark.parametrize(
    "tokens",
    [
        ["m"],
        ["m", "-tp", "16"],
        ["m", "-tp=16"],
        ["-tp", "16", "m"],
        ["m", "--tensor-parallel-size=2", "--tensor-parallel", "4"],
        ["m", "--te=3", "-n", "2"],
        ["-n", "5", "--nnodes", "6", "--", "m"],
        ["--nn", "7", "m"],
    ],
)
def test_argparse_reads_the_same(tokens: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--nnodes", "-n", type=int, default=1)
    read = parser.parse_args(tokens)
    assert argv.whole_number(tokens, TP, 1) == read.tensor_parallel_size
    assert argv.whole_number(tokens, NODES, 1) == read.nnodes


# --- numbers ---


@pytest.mark.parametrize(
    ("tokens", "number"),
    [
        ([], 1),
        (["-tp", "16"], 16),
        (["-tp=08"], 8),
        (["-tp", " 4 "], 4),
        (["-tp", "+4"], 4),
        (["-tp", "2", "-tp", "1"], 1),
    ],
)
def test_a_whole_number_is_the_last_value_or_the_engines_default(tokens: list[str], number: int) -> None:
    assert argv.whole_number(tokens, TP, 1) == number


@pytest.mark.parametrize(
    "value",
    ["", "two", "1.5", "0", "-5", "0x8", "²", "٣", "{size}", "-+5", "+-5", "--5", "9" * 5000],
    ids=lambda value: value[:8] or "empty",
)
def test_a_value_that_is_no_degree_is_a_fault_that_shows_it(value: str) -> None:
    text = fault_text([f"--tensor-parallel-size={value}"])
    assert text.startswith("--tensor-parallel-size is '")
    assert value[:8] in text
    assert text.endswith("expected: a whole number, 1 or more")


def test_the_lowest_number_may_be_zero() -> None:
    rank = Flag("--node-rank")
    assert argv.whole_number(["--node-rank", "0"], rank, 5, lowest=0) == 0
    with pytest.raises(ConfigError) as caught:
        argv.whole_number(["--node-rank=-1"], rank, 5, lowest=0)
    assert caught.value.text() == "--node-rank is '-1'\n  expected: a whole number, 0 or more"


def test_the_fault_shows_the_flag_as_the_user_wrote_it() -> None:
    assert fault_text(["--tensor_par", "x"]).startswith("--tensor_par is 'x'")


# --- adding ---


@pytest.mark.parametrize(
    ("tokens", "value", "expected"),
    [
        ([], "ray", ("--distributed-executor-backend", "ray")),
        (["m", "-tp", "16"], "ray", ("m", "-tp", "16", "--distributed-executor-backend", "ray")),
        (["-tp", "2", "--", "m"], "ray", ("-tp", "2", "--distributed-executor-backend", "ray", "--", "m")),
        (["m"], None, ("m", "--distributed-executor-backend")),
    ],
)
def test_a_flag_is_added_after_the_users_options_and_before_two_dashes(
    tokens: list[str], value: str | None, expected: tuple[str, ...]
) -> None:
    assert argv.add(tokens, EXECUTOR, value) == expected


TOKENS = st.lists(
    st.text(max_size=8) | st.sampled_from(["--", "-", "-tp", "--te=2", "m", "16", "--a b", "=", "{size}"])
)


@given(tokens=TOKENS, value=st.none() | st.text(min_size=1).filter(lambda text: not text.startswith("-")))
def test_adding_a_flag_never_loses_or_reorders_a_users_token(tokens: list[str], value: str | None) -> None:
    before = list(tokens)
    addition = [EXECUTOR.name] if value is None else [EXECUTOR.name, value]
    result = list(argv.add(tokens, EXECUTOR, value))
    assert tokens == before
    assert len(result) == len(tokens) + len(addition)
    places = [at for at in range(len(tokens) + 1) if result == [*tokens[:at], *addition, *tokens[at:]]]
    assert places
    assert "--" not in tokens[: places[0]]


@given(tokens=TOKENS, value=st.text(min_size=1).filter(lambda text: not text.startswith("-")))
def test_an_added_value_is_the_one_that_counts(tokens: list[str], value: str) -> None:
    flag = Flag("--lwsrun-own-flag")
    assert argv.text(argv.add(tokens, flag, value), flag) == value


@given(tokens=TOKENS)
def test_what_is_found_stands_in_the_list_where_it_is_said_to_stand(tokens: list[str]) -> None:
    try:
        found = argv.find(tokens, TP)
    except ConfigError:
        assume(False)
    for occurrence in found:
        spanned = tokens[occurrence.at : occurrence.at + occurrence.width]
        assert spanned[0].startswith(occurrence.text)
        assert occurrence.value == (spanned[1] if occurrence.width == 2 else spanned[0].partition("=")[2])


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("--tp-size 1 --tensor-parallel-size 2", "2"),
        ("--tensor-parallel-size=2 --tp 1", "1"),
        ("--tens 2", "2"),
        ("--t 2", None),
        ("--tensor-parallel-sizes 2", None),
    ],
)
def test_an_option_with_two_long_names_is_read_by_both_and_the_last_wins(command: str, value: str | None) -> None:
    flag = Flag("--tp-size", shortest="--tp", also=(Flag("--tensor-parallel-size", shortest="--te"),))
    assert argv.text(command.split(), flag) == value
    assert argv.without(command.split(), (flag,)) == (() if value else tuple(command.split()))


# --- switches ---

HYBRID = Flag("--data-parallel-hybrid-lb", ("-dph",), shortest="--data-parallel-h", takes_value=False)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("", None),
        ("--data-parallel-hybrid-lb", True),
        ("-dph", True),
        ("--no-data-parallel-hybrid-lb", False),
        ("--no_data_parallel_hybrid_lb", False),
        ("--no-data-parallel-h", False),
        ("--data-parallel-hybrid-lb --no-data-parallel-hybrid-lb", False),
        ("--no-data-parallel-hybrid-lb -dph", True),
        ("-dph --no-data-parallel-h --data-parallel-h", True),
        ("-- -dph", None),
    ],
)
def test_of_a_switch_and_its_negation_the_last_counts(line: str, state: bool | None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-parallel-hybrid-lb", "-dph", action=argparse.BooleanOptionalAction)
    parser.add_argument("rest", nargs="*")
    theirs = parser.parse_args(line.replace("no_data_parallel_hybrid_lb", "no-data-parallel-hybrid-lb").split())
    assert argv.switched(line.split(), HYBRID) is state is theirs.data_parallel_hybrid_lb
    assert argv.given(line.split(), HYBRID) is (state is True)
