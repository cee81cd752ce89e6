"""`simulate --root-fs`. This machine's own root stands in for an image; tests/shipped/test_images.py has real ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from conftest import Simulate, start

LOOK = """
import os
print(os.getppid(), os.environ.get("OURS"), os.environ.get("THEIRS"))
open("/etc/lwsrun-test-mark", "x").close()
print(open("/etc/hostname").read().strip(), os.stat("/etc/lwsrun-test-mark").st_uid == os.getuid())
"""


def test_pods_run_from_a_root_file_system_of_their_own(simulate: Simulate) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = ("--size=2", "--root-fs=/", f"--root-env=PATH={path}", "--root-env=THEIRS=2")
    done = simulate(*options, command=[sys.executable, "-c", LOOK], OURS="1")
    assert done.codes() == [0, 0]
    for index, name in enumerate(("sim-0", "sim-0-1")):
        assert done.said(index) == ["1 None 2", f"{name} True"]
    assert not Path("/etc/lwsrun-test-mark").exists()


def test_an_image_without_lwsrun_is_told_so(simulate: Simulate) -> None:
    done = simulate("--size=1", "--root-fs=/", "--root-env=PATH=/nonexistent", command=["true"])
    assert done.codes() == [70]
    assert "the image has no lwsrun on its PATH, /nonexistent" in done.log(0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--root-env=A=1"], "are of the image that --root-fs names"),
        (["--root-fs=/", "--root-env=A"], "--root-env 'A'"),
        (["--root-fs=/", "--root-user=alice"], "--root-user 'alice'"),
        (["--root-fs=/", "--fault=slow-start:0=1s"], "the wrapper of that fault is not in the image"),
        (["--root-fs=/", "--isolation=loopback"], "plain loopback has no file systems"),
        (["--root-fs=/nonexistent"], "does not exist"),
    ],
)
def test_what_does_not_go_together_is_refused(options: list[str], said: str) -> None:
    done = start("simulate", "--size=1", *options, "--", "true")
    assert done.returncode == 78
    assert said in done.stderr
    assert "Traceback" not in done.stderr
