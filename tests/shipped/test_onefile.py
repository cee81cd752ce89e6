"""`make dist`'s one file, on the Pythons of engine images and in the ways that pods are locked down."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
from conftest import free_port, wait_until
from shipping import PYTHONS, build, build_for_all, find_python

from launcher.cli import lwsrun
from launcher.mpi.keys import mint

pytestmark = [pytest.mark.shipped, pytest.mark.timeout(600)]

USER = 12345  # whom /etc/passwd does not know
LOOK = """
import importlib.util, os, sys
print(os.environ.get("PYTHONPATH"), sys.path)
found = [importlib.util.find_spec(name) for name in ("aiohttp", "click", "launcher", "psutil")]
print([spec and spec.origin for spec in found])
"""


def run(
    python: Path, file: Path, *arguments: str, place: Path | None = None, limit: float = 120, **environ: str
) -> subprocess.CompletedProcess[str]:
    """The one file under that Python, unpacked in `place`, as its `#!` line would start it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LWS", "PYTHON", "XDG_"))}
    env["PATH"] = f"{python.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    if place is not None:
        env["LWSRUN_EXTRACT_DIR"] = str(place)
    return subprocess.run(
        [str(file), *arguments], capture_output=True, text=True, timeout=limit, check=False, env={**env, **environ}
    )


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_for_all(tmp_path_factory.mktemp("dist"))


@pytest.fixture(params=PYTHONS)
def python(request: pytest.FixtureRequest) -> Path:
    """Each of the Pythons in turn."""
    return find_python(request.param)


@pytest.fixture
def newest() -> Path:
    return find_python(PYTHONS[-1])


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place to unpack to that these tests share; the tests of unpacking have their own."""
    return tmp_path_factory.mktemp("unpacked")


@pytest.fixture
def in_container(tmp_path: Path, one_file: Path, newest: Path):  # type: ignore[no-untyped-def]
    """Run a script as a container's user: fresh /tmp and /dev/shm, Python in /mnt/python, the file as /mnt/lwsrun."""

    def inside(script: str, set_up: str = "", user: int = USER) -> subprocess.CompletedProcess[str]:
        as_root = f"""
            set -e
            mount -t tmpfs tmpfs /mnt && mkdir /mnt/python /mnt/volume
            mount --bind {newest.parent.parent} /mnt/python
            cp {one_file} /mnt/lwsrun && chmod 755 /mnt /mnt/lwsrun
            mount -t tmpfs -o mode=1777 tmpfs /tmp
            mount -t tmpfs -o mode=1777 tmpfs /dev/shm
            {set_up}
            cd /
            exec setpriv --reuid={user} --regid={user} --clear-groups -- \\
                env -i PATH=/mnt/python/bin:/usr/bin:/bin LD_LIBRARY_PATH=/mnt/python/lib sh -c {shlex.quote(script)}
        """
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", as_root],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return inside


def test_it_runs_on_the_images_own_python(one_file: Path, unpacked: Path, python: Path) -> None:
    done = run(python, one_file, "--version", place=unpacked)
    assert done.returncode == 0, done.stderr
    assert f"one file {one_file}" in done.stdout
    assert f" {python.parent}/" in done.stdout
    options = ("--size=2", "--gpus-per-node=8")
    done = run(python, one_file, "plan", *options, "--", "vllm", "serve", "m", "-tp=16", place=unpacked)
    assert done.returncode == 0, done.stderr
    assert "--node-rank" in done.stdout
    done = run(python, one_file, "probe", "ready", "--port=1", place=unpacked)
    assert done.returncode == 1, done.stderr
    assert "no launcher answers at 127.0.0.1 and ::1 port 1: connection refused" in done.stdout


def test_a_group_of_pods_starts_itself_from_the_one_file(one_file: Path, unpacked: Path, python: Path) -> None:
    options = ("--size=2", "--isolation=namespaces", "--fault=slow-start:1=100ms")
    done = run(python, one_file, "simulate", *options, "--", "sleep", "1", place=unpacked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slow-start: the engine begins" in done.stdout
    assert "2 pods, own namespaces each" in done.stdout


@pytest.mark.parametrize("command", sorted(lwsrun.list_commands(click.Context(lwsrun))))
def test_every_command_is_there(one_file: Path, unpacked: Path, newest: Path, command: str) -> None:
    done = run(newest, one_file, command, "--help", place=unpacked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith(f"usage: lwsrun {command} ")


def test_a_running_pod_is_probed_and_shown(one_file: Path, unpacked: Path, newest: Path) -> None:
    port = free_port()
    env = {"PATH": f"{newest.parent}:/usr/bin:/bin", "LWSRUN_EXTRACT_DIR": str(unpacked)}
    argv = [str(one_file), "start", "--size=1", f"--port={port}", "--drain-delay=0", "--", "sleep", "600"]

    def ask(*arguments: str) -> tuple[int, str]:
        done = run(newest, one_file, *arguments, f"--port={port}", place=unpacked)
        return done.returncode, done.stdout + done.stderr

    assert ask("probe", "live")[0] == 1
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: ask("probe", "ready")[0] == 0, limit=60)
            assert ask("probe", "live") == (0, "ok\n")
            code, table = ask("status")
            assert (code, "serving" in table) == (0, True), table
        finally:
            process.terminate()
    assert process.returncode == 0


def test_what_lwsrun_starts_of_itself_is_not_unpacked_again(
    one_file: Path, unpacked: Path, newest: Path, tmp_path: Path
) -> None:
    """The engine's environment has no LWSRUN_EXTRACT_DIR, and what runs in it may find no other place."""
    home = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    options = ("--size=1", "--isolation=loopback", "--fault=slow-start:0=100ms")
    done = run(newest, one_file, "simulate", *options, "--", "true", place=unpacked, **home)
    assert "slow-start: the engine begins" in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / ".cache").exists()


def test_the_child_that_tries_mpis_logins_has_its_library(
    one_file: Path, unpacked: Path, newest: Path, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "client_key").write_text(mint().private)
    (tmp_path / "known_hosts").touch()
    login = {"index": 1, "address": "127.0.0.1", "port": port, "user": "nobody"}
    (tmp_path / "logins.json").write_text(json.dumps([login]))
    done = run(newest, one_file, "-m", "launcher.mpi.knock", str(tmp_path), "0.1", place=unpacked)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"port {port}: connection refused" in done.stdout


def test_the_engine_sees_nothing_of_our_packages(one_file: Path, unpacked: Path, python: Path, tmp_path: Path) -> None:
    alone = subprocess.run(
        [python, "-P", "-c", LOOK], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert "launcher" not in alone.stdout
    command = ("start", "--size=1", "--", str(python), "-P", "-c", LOOK)
    done = run(python, one_file, *command, place=unpacked, PYTHONPATH=str(tmp_path))
    assert done.stdout == alone.stdout, done.stderr
    done = run(python, one_file, "start", "--size=1", "--", "env", place=unpacked)
    assert "PYTHON" not in done.stdout


def test_two_builds_are_the_same_bytes(one_file: Path, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        again = build(tmp_path / "again", env={**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"})
    finally:
        os.umask(umask)
    assert again.read_bytes() == one_file.read_bytes()
    (wheel,) = again.parent.glob("*.whl")
    assert wheel.read_bytes() == (one_file.parent / wheel.name).read_bytes()


def test_it_holds_compiled_parts_for_both_machines(one_file: Path) -> None:
    with zipfile.ZipFile(one_file) as outer:
        parts = [zipfile.ZipFile(outer.open(name)).namelist() for name in outer.namelist() if name.endswith(".zip")]
    names = [name for part in parts for name in part]
    for machine in ("x86_64", "aarch64"):
        for version in ("311", "312", "313"):
            assert f"aiohttp/_http_parser.cpython-{version}-{machine}-linux-gnu.so" in names
    assert len([name for name in names if name.endswith("_rust.abi3.so")]) == 2


@pytest.mark.parametrize("version", ["3.9", "3.10"])
def test_a_python_that_is_too_old_is_told_so(one_file: Path, version: str) -> None:
    done = run(find_python(version), one_file, "start", "--", "true", LWSRUN_TERMINATION_LOG="/dev/null")
    assert done.returncode == 78
    assert f"this Python is cpython-{version.replace('.', '')}-" in done.stderr
    assert "Traceback" not in done.stderr


def test_first_starts_at_the_same_time_share_one_directory(one_file: Path, newest: Path, tmp_path: Path) -> None:
    env = {"PATH": f"{newest.parent}:/usr/bin:/bin", "LWSRUN_EXTRACT_DIR": str(tmp_path / "place")}
    started = [
        subprocess.Popen([str(one_file), "--version"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(5)
    ]
    for process in started:
        _, errors = process.communicate(timeout=200)
        assert (process.returncode, errors) == (0, b"")
    (made,) = (tmp_path / "place").iterdir()
    assert made.name.startswith("lwsrun-")
    assert made.stat().st_mode & 0o777 == 0o700


def test_with_a_read_only_root_no_home_and_no_root_it_uses_shared_memory(in_container) -> None:  # type: ignore[no-untyped-def]
    read_only = "mount -o remount,bind,ro /mnt; mount -o remount,bind,ro /tmp; mount -o remount,bind,ro /"
    done = in_container("/mnt/lwsrun --version && ls -ld /dev/shm/lwsrun-*; touch /x", set_up=read_only)
    assert "one file /mnt/lwsrun" in done.stdout, done.stderr
    assert f"drwx------ 3 {USER} {USER}" in done.stdout
    assert "Read-only file system" in done.stderr  # of touch: the root was really so


def test_an_empty_dir_is_used_where_it_is_named(in_container) -> None:  # type: ignore[no-untyped-def]
    """As the kubelet makes it: root's, mode 0777; mounted where HOME is of no use."""
    script = "export HOME=/nonexistent LWSRUN_EXTRACT_DIR=/mnt/volume; /mnt/lwsrun --version && ls /mnt/volume /tmp"
    done = in_container(script, set_up="mount -t tmpfs -o mode=0777 tmpfs /mnt/volume")
    assert "one file" in done.stdout, done.stderr
    assert "/mnt/volume:\nlwsrun-" in done.stdout
    assert done.stdout.rstrip().endswith("/tmp:")


def test_a_place_mounted_noexec_is_passed_over(in_container) -> None:  # type: ignore[no-untyped-def]
    script = "export LWSRUN_EXTRACT_DIR=/mnt/volume; /mnt/lwsrun --version && ls -A /mnt/volume"
    done = in_container(script, set_up="mount -t tmpfs -o mode=0777,noexec tmpfs /mnt/volume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1


def test_a_directory_that_somebody_else_made_is_not_used(in_container) -> None:  # type: ignore[no-untyped-def]
    """Anybody can guess the name in /tmp: what lies there could be any program."""
    squat = f"for at in /tmp /dev/shm; do mkdir -m 777 $at/lwsrun-{USER}; chown 99 $at/lwsrun-{USER}; done"
    done = in_container("/mnt/lwsrun start -- true", set_up=squat)
    assert done.returncode == 78
    for place in ("/tmp", "/dev/shm"):
        assert f"{place}/lwsrun-{USER} belongs to user 99" in done.stderr
    assert "set LWSRUN_EXTRACT_DIR to it" in done.stderr
    link = f"mkdir -m 700 /tmp/real; chown {USER} /tmp/real; ln -s /tmp/real /tmp/lwsrun-{USER}"
    done = in_container("/mnt/lwsrun --version && ls /tmp/real /dev/shm", set_up=link)
    assert f"/tmp/real:\n\n/dev/shm:\nlwsrun-{USER}" in done.stdout or f"/dev/shm:\nlwsrun-{USER}" in done.stdout
    assert done.returncode == 0, done.stderr


def test_a_full_disk_leaves_nothing_behind_and_the_next_place_is_tried(in_container) -> None:  # type: ignore[no-untyped-def]
    script = "export LWSRUN_EXTRACT_DIR=/mnt/volume; /mnt/lwsrun --version && ls -A /mnt/volume && ls -d /tmp/lwsrun-*"
    done = in_container(script, set_up="mount -t tmpfs -o mode=0777,size=8m tmpfs /mnt/volume")
    assert done.stdout.endswith(f"/tmp/lwsrun-{USER}\n"), done.stderr
    assert done.stdout.count("\n") == 2


def test_what_was_unpacked_with_the_image_is_used_by_every_user(in_container) -> None:  # type: ignore[no-untyped-def]
    set_up = (
        "mount -t tmpfs -o mode=0755 tmpfs /opt; umask 077;"
        " env -i PATH=/mnt/python/bin:/usr/bin:/bin LD_LIBRARY_PATH=/mnt/python/lib /mnt/lwsrun unpack;"
        " umask 022; mount -o remount,bind,ro /opt"
    )
    done = in_container("/mnt/lwsrun simulate --help && ls -A /tmp /dev/shm", set_up=set_up)
    assert done.stdout.startswith("/opt/lwsrun/lwsrun-"), done.stderr
    assert "Usage: lwsrun simulate" in done.stdout
    assert done.stdout.endswith("/dev/shm:\n\n/tmp:\n")


def test_a_sigterm_to_pid_1_while_it_unpacks_is_not_lost(one_file: Path, newest: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    env = {"PATH": f"{newest.parent}:/usr/bin:/bin", "LWSRUN_EXTRACT_DIR": str(place)}
    argv = ["unshare", "--pid", "--net", "--mount-proc", "--fork", "--kill-child"]
    argv += [str(one_file), "start", "--size=1", "--drain-delay=0", "--", "sleep", "600"]
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: list(place.glob(".lwsrun-*")), limit=60)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGTERM)
            _, errors = process.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert process.returncode == 0, errors
    assert "SIGTERM" in errors


def test_the_wheel_knows_what_it_was_built_from(one_file: Path, tmp_path: Path) -> None:
    (wheel,) = one_file.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, "-m", "launcher", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env, cwd=tmp_path)
    assert f"package {tmp_path}/launcher" in done.stdout
    assert (tmp_path / "launcher" / "revision").read_text().strip() in done.stdout
