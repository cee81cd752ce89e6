from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version

import pytest
from conftest import start


def test_the_version_tells_what_runs() -> None:
    done = start("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"lwsrun {version('lwsrun')} (revision ")
    assert "/launcher, Python 3." in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shells_script_asks_lwsrun_for_the_words(shell: str) -> None:
    done = start("completion", shell)
    assert done.returncode == 0
    assert f"_LWSRUN_COMPLETE={shell}_complete" in done.stdout


def test_bash_completes_commands_and_options() -> None:
    assert shutil.which("bash")
    done = start(COMP_WORDS="lwsrun si", COMP_CWORD="1", _LWSRUN_COMPLETE="bash_complete")
    assert done.stdout == "plain,simulate\n"
    done = start(COMP_WORDS="lwsrun start --drain-t", COMP_CWORD="2", _LWSRUN_COMPLETE="bash_complete")
    assert done.stdout == "plain,--drain-timeout\n"
    script = start("completion", "bash").stdout
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_package_has_nothing_to_unpack() -> None:
    done = start("unpack")
    assert done.returncode == 78
    assert "nothing to unpack: this is lwsrun" in done.stderr
