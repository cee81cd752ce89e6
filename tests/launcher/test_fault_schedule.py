"""How faults are written, on the command line and in a scenario, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import start

from backends.errors import ConfigError
from launcher.simulate.faults.schedule import GRAMMAR, parse_fault, parse_scenario
from launcher.simulate.spec import Fault

WRITTEN = {
    "kill:1@10s": Fault("kill", 1, "start", 10.0),
    "kill:1@10": Fault("kill", 1, "start", 10.0),
    "kill:0@start+0.5s": Fault("kill", 0, "start", 0.5),
    "kill:0@start": Fault("kill", 0, "start", 0.0),
    "kill-engine:2@serving": Fault("kill-engine", 2, "serving", 0.0),
    "term:1@formed+2m": Fault("term", 1, "formed", 120.0),
    "late:2@500ms": Fault("late", 2, "start", 0.5),
    "freeze:2@formed+5s": Fault("freeze", 2, "formed", 5.0),
    "freeze:2@5s+20s": Fault("freeze", 2, "start", 5.0, 20.0),
    "freeze:2@serving+5s+20s": Fault("freeze", 2, "serving", 5.0, 20.0),
    "partition:1@8s": Fault("partition", 1, "start", 8.0),
    "partition:1@serving+0s+5s": Fault("partition", 1, "serving", 0.0, 5.0),
    "engine-exit:0@5s=0": Fault("engine-exit", 0, "start", 5.0, code=0),
    "engine-exit:0@serving+1s=139": Fault("engine-exit", 0, "serving", 1.0, code=139),
    "slow-start:2=30s": Fault("slow-start", 2, lasts=30.0),
    "late-dns:3s": Fault("late-dns", lasts=3.0),
    "stale-leader": Fault("stale-leader", lasts=5.0),
    "stale-leader:7s": Fault("stale-leader", lasts=7.0),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_fault_is_read_as_it_is_written(text: str) -> None:
    assert parse_fault(text, size=3) == WRITTEN[text]
    assert parse_fault(text, size=3).text == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("explode:0@1s", "'explode' is no fault"),
        ("kill", "the INDEX of a pod is missing"),
        ("kill:3@1s", "'3' is no INDEX from 0 to 2"),
        ("kill:-1@1s", "'-1' is no INDEX"),
        ("kill:²@1s", "'²' is no INDEX"),
        ("kill:0", "it does not say when"),
        ("kill:0@", "a TIME is missing"),
        ("kill:0@never", "'never' is no TIME"),
        ("kill:0@nan", "'nan' is no TIME"),
        ("kill:0@-1s", "'-1s' is no TIME"),
        ("kill:0@serving+", "a TIME is missing"),
        ("kill:0@1s+2s", "kill cannot be undone"),
        ("late:0@1s+2s", "late cannot be undone"),
        ("late:1@formed", "without that pod the group is never formed"),
        ("kill:0@1s colour=red", "'1s colour=red' is no TIME"),
        ("freeze:0@1s+2s+3s", "has too many parts"),
        ("freeze:0@serving+1s+2s+3s", "has too many parts"),
        ("engine-exit:0@5s", "the exit CODE is missing"),
        ("engine-exit:0@5s=256", "'256' is no exit CODE from 0 to 255"),
        ("slow-start:0", "a TIME is missing"),
        ("slow-start:9=1s", "'9' is no INDEX"),
        ("slow-start:0=1s@5s", "slow-start has no WHEN"),
        ("late-dns", "a TIME is missing"),
        ("late-dns:0@3s", "late-dns has no WHEN"),
        ("stale-leader:", "a TIME is missing"),
    ],
)
def test_what_is_no_fault_is_told_with_the_part_that_is_wrong_and_the_grammar(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_fault(text, size=3)
    (fault,) = error.value.faults
    assert fault.found.startswith(f"--fault {text!r}: ")
    assert why in fault.found
    assert fault.expected == GRAMMAR


def test_a_scenario_has_one_fault_a_line_with_comments_and_blank_lines() -> None:
    text = "# a bad day\n\nkill:1@10s\n  freeze:2@5s+20s   # and back\n"
    assert parse_scenario(text, "day.txt", size=3) == [
        Fault("kill", 1, "start", 10.0),
        Fault("freeze", 2, "start", 5.0, 20.0),
    ]


def test_every_bad_line_of_a_scenario_is_told_with_its_number() -> None:
    with pytest.raises(ConfigError) as error:
        parse_scenario("kill:1@10s\nkill:7@1s # no such pod\n\nboom\n", "day.txt", size=3)
    assert [fault.found.partition(" ")[0] for fault in error.value.faults] == ["day.txt:2:", "day.txt:4:"]


def test_everything_that_is_wrong_with_the_faults_is_told_at_once(tmp_path: Path) -> None:
    scenario = tmp_path / "day.txt"
    scenario.write_text("\nkill:7@1s\n")
    options = ("--size=2", "--fault=boom", f"--scenario={scenario}")
    done = start("simulate", *options, "--", "true")
    assert done.returncode == 78
    assert "--fault 'boom'" in done.stderr
    assert f"{scenario}:2:" in done.stderr
    assert done.stderr.count("WHAT:INDEX@WHEN") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--size=2", "--fault=late:1@1s", "--fault=late:1@2s"), "exclude each other: late:1@1s, late:1@2s"),
        (("--size=2", "--fault=stale-leader", "--fault=stale-leader:2s"), "expected: one stale-leader"),
        (("--size=1", "--fault=kill:1@1s"), "'1' is no INDEX: the only pod is 0"),
        (("--size=2", "--scenario=/does/not/exist"), "--scenario /does/not/exist: No such file"),
        (("--size=1", "--fault=stale-leader"), "stale-leader in a group of one"),
        (("--size=2", "--isolation=loopback", "--fault=partition:1@1s"), "plain loopback has neither links nor DNS"),
    ],
)
def test_a_fault_that_cannot_happen_is_a_configuration_error(options: tuple[str, ...], why: str) -> None:
    done = start("simulate", *options, "--", "true")
    assert done.returncode == 78
    assert why in done.stderr
