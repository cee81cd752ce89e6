"""Pods that run an image: its root file system is theirs, its own lwsrun their PID 1, and nothing of ours is in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

from launcher import kernel
from launcher.simulate.spec import Spec

MS_BIND, MS_MOVE, MS_REC = 4096, 8192, 16384
MS_NOSUID, MS_NODEV = 2, 4
# What a container runtime sets where the image says nothing: runc and containerd have the same.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of this machine's, not of the image's.
NOT_IN_IMAGES = ("LWSRUN_EXTRACT_DIR",)


def enter_root(spec: Spec, index: int, generation: int) -> None:
    """As the pod's first process: "/" becomes the image's, with a layer of the pod's own above it. Raises OSError.

    The simulation's directory stays where it was: the pod's /etc files and its termination message lie there.
    """
    assert spec.root_fs is not None
    files = spec.directory_of(index, generation)
    layers = files / "root"
    layers.mkdir()
    kernel.mount("root", str(layers), "tmpfs", MS_NODEV, "mode=755")
    upper, work, merged = layers / "upper", layers / "work", layers / "merged"
    for directory in (upper, work, merged):
        directory.mkdir()
    data = f"lowerdir={_escaped(spec.root_fs)},upperdir={upper},workdir={work},userxattr"
    kernel.mount("overlay", str(merged), "overlay", 0, data)
    for shared in ("/dev", "/sys", spec.directory):
        target = merged / shared.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        kernel.mount(shared, str(target), flags=MS_BIND | MS_REC)
    (merged / "proc").mkdir(exist_ok=True)
    for name in ("resolv.conf", "hosts", "hostname", "nsswitch.conf"):
        (merged / "etc").mkdir(exist_ok=True)
        (merged / "etc" / name).touch()
    # As switch_root(8) does it: a chroot alone could be left again, and pivot_root(2) has no name in libc.
    os.chdir(merged)
    kernel.mount(".", "/", flags=MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _escaped(path: str) -> str:
    """Colons part the lower directories of an overlay, commas the options of a mount."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def environ_of(spec: Spec) -> dict[str, str]:
    """What the container runtime would give it: the image's variables, and those that are addressed to lwsrun."""
    ours = {
        name: value for name, value in spec.environ.items() if name.startswith("LWSRUN_") and name not in NOT_IN_IMAGES
    }
    return {"PATH": PATH, "HOME": "/" if spec.root_user else "/root", **ours, **dict(spec.root_env)}


def become_lwsrun(arguments: list[str], spec: Spec, directory: Path, environ: dict[str, str]) -> NoReturn:
    """exec the image's own, as the user that the pod runs as."""
    found = shutil.which("lwsrun", path=environ["PATH"])
    if found is None:
        raise OSError(f"the image has no lwsrun on its PATH, {environ['PATH']}")
    if spec.root_user is not None:
        user, group = spec.root_user
        os.chown(directory, user, group)
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        kernel.die_with_parent()  # a change of user has undone it
    os.execve(found, ["lwsrun", *arguments], environ)
