"""The end of one of an engine's own processes is seen where it happens, and named as the group's first cause."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import Simulate

GENERIC = ("--size=2", "--backend=generic")


def engine(directory: Path, rank: str, on: str = "1") -> list[str]:
    """A server that its launcher knows by its name, with one rank that is a shell script; it ends 6 s after its rank.

    Everybody but member `on` has a rank that stays.
    """
    shutil.copy("/bin/bash", directory / "VLLM::EngineCore")  # a process has the name of its file
    script = directory / "vllm"
    script.write_text(
        f"""#!/bin/bash
        code='{rank}'
        [ $2 = {on} ] || code='sleep 600 & wait'
        "{directory}/VLLM::EngineCore" -c "$code" &
        trap 'exit 0' TERM
        echo up
        wait
        sleep 6 & wait
        """
    )
    script.chmod(0o755)
    return [str(script), "serve", "{index}"]


def first_cause(simulate: Simulate, directory: Path, sabotage: str = "") -> None:
    done = simulate(*GENERIC, command=engine(directory, "sleep 1; kill -9 $$"), sabotage=sabotage)
    assert done.codes() == [75, 70]
    said = r"stopped because worker 1: the engine's VLLM::EngineCore \(pid \d+\) (ended|exited 137 \(SIGKILL\));"
    for index in range(2):
        assert re.search(said, done.log(index).splitlines()[-1])


def test_a_killed_rank_is_the_first_cause_before_its_engine_ends(simulate: Simulate, tmp_path: Path) -> None:
    first_cause(simulate, tmp_path)


def test_without_the_watch_the_engines_own_end_is_all_that_is_seen(simulate: Simulate, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        first_cause(simulate, tmp_path, sabotage="rank_watch")


def forks(simulate: Simulate, directory: Path, sabotage: str = "") -> None:
    done = simulate(
        *GENERIC, "--fault=term:0@serving+3s", "--drain-delay=0s",
        command=engine(directory, "(sleep 1; sleep 1; true); sleep 600 & wait"), sabotage=sabotage,
    )  # fmt: skip
    assert done.codes() == [0, 0]
    assert "VLLM::EngineCore" not in done.output


def test_a_child_that_a_rank_forks_may_come_and_go(simulate: Simulate, tmp_path: Path) -> None:
    forks(simulate, tmp_path)


def test_without_the_look_at_its_parent_such_a_child_is_taken_for_a_rank(simulate: Simulate, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        forks(simulate, tmp_path, sabotage="rank_names")


def test_a_ranks_own_words_are_told_everywhere(simulate: Simulate, tmp_path: Path) -> None:
    rank = "sleep 1; echo Traceback \\(most recent call last\\): >&2; echo RuntimeError: CUDA error >&2; exit 1"
    done = simulate(*GENERIC, command=engine(tmp_path, rank))
    assert done.codes() == [75, 70]
    for pod in done.pods():
        assert "RuntimeError: CUDA error" in pod["termination_message"]
