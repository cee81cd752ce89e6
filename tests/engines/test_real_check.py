"""`lwsrun check --parse` beside real engines: their parsers take what would be run, and refuse in their own words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import start

pytestmark = [pytest.mark.engine, pytest.mark.timeout(500)]

GROUP = ("--size=2", "--gpus-per-node=1", "--parse", "--format=json")
COMMANDS = {
    "vllm": ["{bin}/vllm", "serve", "m", "-tp", "2"],
    "sglang": ["{bin}/python", "-m", "sglang.launch_server", "--model-path", "m", "--tp", "2"],
}


def parsed(engine: str, *more: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and what the checks of a command in that engine's environment said, by name."""
    home = Path(os.environ.get(f"LWSRUN_TEST_{engine.upper()}", ""))
    assert (home / "bin" / "python").exists(), f"no {engine}: run `make test-engines`"
    command = [word.format(bin=home / "bin") for word in COMMANDS[engine]]
    done = start("check", *GROUP, "--", *command, *more, limit=240, HF_HUB_OFFLINE="1")
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.mark.parametrize("engine", COMMANDS)
def test_the_engines_own_parser_takes_what_a_pod_would_run(engine: str) -> None:
    code, checks = parsed(engine)
    assert checks["parser"]["status"] == "passed", checks["parser"]
    assert checks["engine"]["status"] == "passed", checks["engine"]
    assert checks["engine"]["found"].startswith(f"{engine} ")
    assert code == 0, checks


@pytest.mark.parametrize("engine", COMMANDS)
def test_a_flag_that_the_engine_does_not_know_is_told_in_its_own_words(engine: str) -> None:
    code, checks = parsed(engine, "--no-such-flag", "3")
    assert checks["parser"]["status"] == "failed", checks["parser"]
    assert checks["parser"]["found"] == f"{engine}: unrecognized arguments: --no-such-flag 3"
    assert code == 1
