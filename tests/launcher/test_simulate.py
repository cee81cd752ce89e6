"""A simulated pod is what it claims to be, and a simulation leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
from conftest import LWSRUN, Simulate, free_port, wait_until

LOOK = """
import os, socket
print("name", socket.gethostname())
print("launcher is", os.getppid())
print("leader is", socket.gethostbyname("sim-0.sim.default"))
print("short", socket.gethostbyname("sim-0.sim"))
print("interfaces", sorted(name for _, name in socket.if_nameindex() if name in ("lo", "eth0")))
print("processes", len([p for p in os.listdir("/proc") if p.isdigit()]))
print("shm", os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize >> 20)
print("lws", *(os.environ[n] for n in ("LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX")))
open("/tmp/written-by-the-pod", "x")
try:
    socket.gethostbyname("nobody.sim.default")
except socket.gaierror as error:
    print("nobody", error.errno == socket.EAI_NONAME)
"""


def test_a_pod_has_its_own_pid_1_address_dns_tmp_and_shm(simulate: Simulate) -> None:
    done = simulate("--size=2", "--shm-size=77", command=[sys.executable, "-c", LOOK])
    assert done.codes() == [0, 0]
    assert done.said(1) == [
        "name sim-0-1",
        "launcher is 1",
        "leader is 10.244.0.10",
        "short 10.244.0.10",
        "interfaces ['eth0', 'lo']",
        "processes 2",
        "shm 77",
        "lws sim-0.sim.default 2 1",
        "nobody True",
    ]
    assert not Path("/tmp/written-by-the-pod").exists()


def test_the_users_own_lws_variables_are_dropped_as_the_webhook_does(simulate: Simulate) -> None:
    done = simulate("--size=1", command=["sh", "-c", "echo $LWS_GROUP_SIZE"], LWS_GROUP_SIZE="9")
    assert done.said(0) == ["1"]


def test_the_exit_code_is_that_of_the_pod_that_failed_of_its_own(simulate: Simulate) -> None:
    done = simulate("--size=2", command=["sh", "-c", "[ {index} = 0 ] && sleep 600; exit 9"])
    assert done.codes() == [75, 9]
    assert done.code == 9


def test_the_then_scripts_failure_is_the_simulations(simulate: Simulate) -> None:
    done = simulate("--size=1", "--kind=server", "--then=exit 5", command=["sleep", "600"])
    assert done.codes() == [0]
    assert done.code == 5


def test_a_published_port_is_reachable_from_outside_and_ctrl_c_drains(tmp_path: Path) -> None:
    port = free_port()
    argv = [*LWSRUN, "simulate", "--size=2", "--kind=server", f"--publish={port}:8000", "--"]
    argv += [sys.executable, "-m", "http.server", "8000", "--directory", str(tmp_path)]
    (tmp_path / "hello").write_text("from inside")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: fetch(f"http://127.0.0.1:{port}/hello") == "from inside")
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "SIGTERM to every pod" in output


def test_kill_9_of_a_simulation_leaves_no_process_and_the_next_run_removes_its_directory() -> None:
    argv = [*LWSRUN, "simulate", "--size=2", "--kind=server", "--", "sh", "-c", "sleep 601 & setsid sleep 602 & wait"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            wait_until(lambda: sum("sleep" in argv[0] for argv in below(process.pid)) == 4)
            (directory,) = Path("/tmp").glob(f"lwsrun-sim-{process.pid}-*")
            pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        finally:
            process.kill()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), limit=5)
    subprocess.run([*LWSRUN, "simulate", "--size=1", "--", "true"], check=True, capture_output=True, timeout=30)
    assert not directory.exists()


def test_a_simulation_that_ends_leaves_no_process_no_link_and_no_mount(simulate: Simulate) -> None:
    before = links_and_mounts()
    done = simulate("--size=2", "--kind=server", "--then=true", command=["sh", "-c", "setsid sleep 603 & wait"])
    assert done.codes() == [0, 0]
    assert links_and_mounts() == before
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "603"]]


def test_without_root_a_user_namespace_gives_the_same_pods(tmp_path: Path) -> None:
    """An unprivileged user: made here by dropping to uid 65534 in a mount namespace in which our Python is readable."""
    look = "echo uid $(id -u); hostname; echo launcher is $PPID"
    argv = [*LWSRUN, "simulate", "--isolation=namespaces", "--size=2", "--", "sh", "-c", look]
    if os.getuid() == 0:
        argv = ["unshare", "--mount", "sh", "-c", READABLE_ROOT, "sh", *argv]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, cwd="/", env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("sim-0-1  | sim-0-1", "sim-0-1  | launcher is 1", "sim-0-1  | uid 0"):
        assert line in done.stdout


REPOSITORY = Path(__file__).parents[2]
# /root is often mode 0700 and may hold both the interpreter and this checkout: replace it, in this mount namespace
# only, by a directory that everybody may pass, with the same content bound into it.
READABLE_ROOT = """
set -e
if [ -d /root ]; then
  mkdir -p "${TMPDIR:-/tmp}/root.$$" && mount --rbind /root "${TMPDIR:-/tmp}/root.$$"
  mount -t tmpfs -o mode=755 tmpfs /root
  for entry in "${TMPDIR:-/tmp}/root.$$"/.[!.]* "${TMPDIR:-/tmp}/root.$$"/*; do
    [ -d "$entry" ] || continue
    mkdir -p "/root/${entry##*/}" && mount --rbind "$entry" "/root/${entry##*/}"
  done
  umount -l "${TMPDIR:-/tmp}/root.$$" && rmdir "${TMPDIR:-/tmp}/root.$$"
fi
exec setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/ "$@"
"""


def test_loopback_says_what_it_loses_and_still_forms_a_group() -> None:
    argv = [*LWSRUN, "simulate", "--isolation=loopback", "--size=2", "--", "echo", "from {pod_ip}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sim-0-1  | from 127.0.0.11" in done.stdout
    assert "the launcher is not PID 1" in done.stderr


@pytest.mark.parametrize("fault", ["kill", "kill:5@1s", "kill:0@never", "explode:0@1s", "kill:0@1s+2s", "kill:0@"])
def test_a_fault_that_cannot_be_understood_is_a_configuration_error(fault: str) -> None:
    argv = [*LWSRUN, "simulate", "--size=2", f"--fault={fault}", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 78
    assert f"--fault {fault!r}" in done.stderr
    assert "WHAT:INDEX@WHEN" in done.stderr


def test_a_pods_start_loads_nothing_of_the_simulation_and_no_engine() -> None:
    argv = [sys.executable, "-X", "importtime", "-m", "launcher", "start", "--size=1", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "launcher.lifecycle" in loaded
    heavy = ("launcher.simulate", "launcher.check", "rich", "pyroute2", "ray", "torch", "paramiko")
    assert not [name for name in loaded if name.startswith(tuple(f"{module}." for module in heavy)) or name in heavy]


def test_a_simulation_without_its_libraries_says_what_to_install() -> None:
    without = "import sys; sys.modules['rich'] = None; from launcher.cli import run; run()"
    argv = [sys.executable, "-c", without, "simulate", "--size=2", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 78
    assert done.stderr == "lwsrun: simulate needs rich\nlwsrun:   to do: pip install 'lwsrun[simulate]'\n"


def below(pid: int) -> list[list[str]]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            found.append(child.cmdline() or [""])
        except psutil.Error:
            found.append([""])
    return found


def fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def links_and_mounts() -> tuple[set[str], set[str]]:
    import socket

    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return {name for _, name in socket.if_nameindex()}, mounts
