"""The end of one of an engine's own processes is seen where it happens, and named as the group's first cause."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import Simulate

GENERIC = ("--size=2", "--backend=generic")


def engine(
    directory: Path,
    rank: str,
    leader: str = "sleep 600 & wait",
    after: str = "sleep 6 & wait",
    by: str = "/bin/bash -c",
) -> list[str]:
    """A server that its launcher knows by its name; on worker 1 its one rank is this shell script, elsewhere one that
    stays. leader is what the leader's engine does meanwhile, after what worker 1's does when its rank has ended."""
    program, option = by.split()
    shutil.copy(program, directory / "VLLM::EngineCore")  # a process has the name of its file
    script = directory / "vllm"
    script.write_text(
        f"""#!/bin/bash
        trap 'exit 0' TERM
        echo up
        if [ $2 = 0 ]; then {leader}; exit; fi
        "{directory}/VLLM::EngineCore" {option} '{rank}' &
        wait
        {after}
        """
    )
    script.chmod(0o755)
    return [str(script), "serve", "{index}", "--port", "0"]


RANK = "stopped because worker 1: .*the engine's VLLM::EngineCor"


def first_cause(simulate: Simulate, directory: Path, sabotage: str = "") -> None:
    # The leader's engine is done a second after the rank, long before the rank's own.
    done = simulate(*GENERIC, command=engine(directory, "sleep 1; kill -9 $$", "sleep 2"), sabotage=sabotage)
    assert done.codes() == [75, 70]
    for index in range(2):
        assert re.search(RANK, done.log(index).splitlines()[-1])


def test_a_killed_rank_is_the_first_cause_though_a_peers_engine_ends_before_its_own(
    simulate: Simulate, tmp_path: Path
) -> None:
    first_cause(simulate, tmp_path)


def test_without_the_watch_the_peer_is_named(simulate: Simulate, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        first_cause(simulate, tmp_path, sabotage="rank_watch")


def test_an_engine_that_stays_when_its_rank_has_died_is_ended(simulate: Simulate, tmp_path: Path) -> None:
    stops = "exec sleep 600"  # without collecting the rank, so that the kernel still tells how it ended
    rank = "sleep 1; echo Traceback \\(most recent call last\\): >&2; echo RuntimeError: CUDA error >&2; exit 3"
    command = engine(tmp_path, rank)
    Path(command[0]).write_text(Path(command[0]).read_text().replace("        wait\n", f"        {stops}\n", 1))
    done = simulate(*GENERIC, command=command)
    assert done.codes() == [75, 70]
    for index in range(2):
        said = r"stopped because worker 1: the engine's VLLM::EngineCor\S* \(pid \d+\) exited 3; "
        assert re.search(said, done.log(index).splitlines()[-1])
        assert "RuntimeError: CUDA error" in done.pods()[index]["termination_message"]


def test_an_engine_that_fails_and_ends_its_ranks_first_is_told_by_its_own_code_and_words(
    simulate: Simulate, tmp_path: Path
) -> None:
    after = "sleep 0.7; echo Traceback \\(most recent call last\\): >&2; echo ValueError: no memory >&2; exit 1"
    done = simulate(*GENERIC, command=engine(tmp_path, "sleep 1; exit 0", after=after))
    assert done.codes() == [75, 1]
    for pod in done.pods():
        assert pod["termination_message"].startswith("stopped because worker 1: the engine exited 1")
        assert "ValueError: no memory" in pod["termination_message"]


def ranks_that_come_and_go(simulate: Simulate, directory: Path, sabotage: str = "") -> None:
    rank = "if (fork() == 0) { sleep 1; kill 9, $$ } sleep 600"  # it does not collect it: the kernel tells its code
    command = engine(directory, rank, by="/usr/bin/perl -e")
    done = simulate(*GENERIC, "--fault=term:0@serving+5s", command=command, sabotage=sabotage)
    assert done.codes() == [0, 0]
    assert "the engine's VLLM::EngineCor" not in done.log(1)


def test_a_child_that_a_rank_forks_may_come_and_go(simulate: Simulate, tmp_path: Path) -> None:
    ranks_that_come_and_go(simulate, tmp_path)


def test_without_the_look_at_its_parent_such_a_child_is_taken_for_a_rank(simulate: Simulate, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        ranks_that_come_and_go(simulate, tmp_path, sabotage="rank_names")
