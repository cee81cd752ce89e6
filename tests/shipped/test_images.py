"""The images of container/, really built, and run as the pods of a group from their own root file systems.

Debian's packages stand in for the registries' bases: what differs there (CUDA, the engines) is not ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shipping import ROOT, build_for_all

pytestmark = [pytest.mark.shipped, pytest.mark.timeout(1200)]

SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
PACKAGES = "python3"  # not sshd: the image for TensorRT-LLM is to add it
PLACE = "import os, socket; print(os.getpid(), os.getuid(), socket.gethostname(), os.path.exists('/etc/stand-in'))"
AS_ROOT, AS_USER = "0", "1000"


class Images:
    """buildah with a storage of its own, all of which goes with its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        storage = directory / "storage.conf"
        storage.write_text(f'[storage]\ndriver = "vfs"\nrunroot = "{directory}/run"\ngraphroot = "{directory}/graph"\n')
        self.environ = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}

    def buildah(self, *arguments: str, cwd: Path = ROOT) -> str:
        done = subprocess.run(
            ["buildah", *arguments], capture_output=True, text=True, check=False, env=self.environ, cwd=cwd
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()


def make_base(directory: Path) -> Path:
    """Debian with Python, from this machine's own package sources."""
    base = directory / "base"
    base.mkdir()
    argv = ["mmdebstrap", "-q", "--variant=minbase", f"--include={PACKAGES}"]
    argv += ["--customize-hook=touch $1/etc/stand-in", "bookworm", str(base / "base.tar")]
    done = subprocess.run(
        [*argv, *([str(SOURCES)] if SOURCES.exists() else [])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (base / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    return base


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What .dockerignore leaves of the checkout."""
    directory = tmp_path_factory.mktemp("context")
    build_for_all(directory / "dist")
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    made = Images(tmp_path_factory.mktemp("images"))
    base = make_base(made.directory)
    made.buildah("build", "-q", "-t", "localhost/base", str(base))
    (base / "base.tar").unlink()
    yield made
    made.buildah("rm", "--all")
    made.buildah("rmi", "--all", "--force")


def root_of(images: Images, context: Path, dockerfile: str, *options: str) -> tuple[Path, str]:
    """Build it; its root file system, and how to unmount it again."""
    file = ROOT / "container" / dockerfile
    images.buildah(
        "build", "-q", "--build-arg=BASE=localhost/base", f"--ignorefile={ROOT / '.dockerignore'}", *options,
        "-f", str(file), "-t", "localhost/tried", str(context),
    )  # fmt: skip
    container = images.buildah("from", "localhost/tried")
    return Path(images.buildah("mount", container)), container


@pytest.mark.parametrize(
    ("dockerfile", "options", "user"),
    [
        ("Dockerfile", (), AS_ROOT),
        ("Dockerfile", ("--target=nonroot",), AS_USER),
        ("Dockerfile.vllm", ("--target=nonroot",), AS_USER),
        ("Dockerfile.sglang", (), AS_ROOT),
        ("Dockerfile.tensorrt-llm", ("--target=nonroot",), AS_USER),
    ],
)
def test_the_images_launcher_is_pid_1_of_a_group_from_its_own_root_file_system(
    images: Images, context: Path, tmp_path: Path, dockerfile: str, options: tuple[str, ...], user: str
) -> None:
    root, container = root_of(images, context, dockerfile, *options)
    try:
        image = images.buildah("inspect", "--format={{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.User}}", container)
        assert image.startswith("[lwsrun start --]")
        assert image.endswith(f"{user}:{user}" if user != AS_ROOT else "]")
        engine = f"import os; print('parent', os.getppid()); {PLACE}"
        argv = [sys.executable, "-m", "launcher", "simulate", "--size=2", "--isolation=namespaces", f"--root-fs={root}"]
        argv += [f"--root-user={user}", f"--keep-logs={tmp_path}", "--", "python3", "-c", engine]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("sim-0", "sim-0-1"):
            said = (tmp_path / f"{name}.log").read_text()
            assert "parent 1\n" in said
            assert f" {user} {name} True\n" in said
        if dockerfile.endswith("tensorrt-llm"):
            assert (root / "usr/sbin/sshd").exists()
            assert not list(root.glob("etc/ssh/ssh_host_*"))
        assert not (root / "tmp" / "lwsrun-0").exists()
        assert not list(root.glob("root/.cache/lwsrun*"))
    finally:
        images.buildah("rm", container)
