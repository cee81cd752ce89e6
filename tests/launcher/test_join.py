"""Who is let into a group, who is refused and for how long he asks again, and what those who wait say meanwhile.

Real launchers on loopback addresses. Each scenario with a twin in tests/sabotage must fail without its mechanism.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import LWSRUN, SABOTAGE, free_port, start, wait_until

JOB = ("--", "true")


class Pod:
    """A running launcher and what it has said on stderr."""

    def __init__(self, process: subprocess.Popen[bytes], file: Path) -> None:
        self.process = process
        self.file = file

    @property
    def log(self) -> str:
        return self.file.read_text(errors="replace")

    def says(self, text: str, limit: float = 20) -> None:
        """Wait until it has said something that matches."""
        wait_until(lambda: re.search(text, self.log) or self.process.poll() is not None, limit)
        assert re.search(text, self.log), self.log

    def wait(self, limit: float = 20) -> int:
        return self.process.wait(limit)

    @property
    def last_line(self) -> str:
        return self.log.splitlines()[-1]


class Pods:
    """Starts launchers of one group: index 0 on 127.0.0.1, index 1 on 127.0.0.2, and so on."""

    def __init__(self, directory: Path, sabotage: str = "") -> None:
        directory.mkdir()
        self.directory = directory
        self.port = free_port()
        self.sabotage = sabotage
        self.all: list[Pod] = []

    def start(self, index: int, *arguments: str, size: int = 2, **environ: str) -> Pod:
        """A later option or an entry of environ wins over what is set here."""
        own = (f"--leader-address=127.0.0.1 --size={size} --index={index} --listen=127.0.0.{index + 1}").split()
        own += [f"--port={self.port}", f"--pod-ip=127.0.0.{index + 1}", "--report-every=0.3s", "--mismatch-timeout=1s"]
        return self.run([*LWSRUN, "start", *own, *arguments], **environ)

    def run(self, argv: list[str], **environ: str) -> Pod:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("LWS_", "NCCL_"))}
        if self.sabotage:
            env |= {"PYTHONPATH": str(SABOTAGE), "LWSRUN_TEST_SABOTAGE": self.sabotage}
        file = self.directory / f"pod-{len(self.all)}.log"
        message = str(self.directory / f"pod-{len(self.all)}.message")
        with file.open("wb") as output:
            process = subprocess.Popen(
                argv,
                stderr=output,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env={**env, "LWSRUN_TERMINATION_LOG": message, **environ},
            )
        self.all.append(Pod(process, file))
        return self.all[-1]

    def end(self) -> None:
        for pod in self.all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGKILL)
            pod.process.wait(10)


MakePods = Callable[..., Pods]


@pytest.fixture
def make_pods(tmp_path: Path) -> Iterator[MakePods]:
    made: list[Pods] = []

    def make(sabotage: str = "") -> Pods:
        made.append(Pods(tmp_path / f"pods-{len(made)}", sabotage))
        return made[-1]

    yield make
    for pods in made:
        pods.end()


@pytest.fixture
def pods(make_pods: MakePods) -> Pods:
    return make_pods()


def image(directory: Path, *, vllm: str = "0.32.0", ray: str = "2.60.0", python: str = "3.12.3") -> dict[str, str]:
    """The environment of a pod whose image has such a vLLM: its Python only tells versions, everything else waits."""
    directory.mkdir()
    versions = json.dumps({"vllm": vllm, "ray": ray, "python": python})
    interpreter = directory / "python3"
    interpreter.write_text(f"#!/bin/sh\n[ \"$1\" = -c ] && echo '{versions}' && exit\nexec sleep 600\n")
    program = directory / "vllm"
    program.write_text(f"#!{interpreter}\n")
    for file in (interpreter, program):
        file.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


VLLM = ("--gpus-per-node=8", "--", "vllm", "serve", "m", "-tp", "8", "-pp", "2")


# ------------------------------------------------------------------ refused for being configured differently


def another_size(pods: Pods) -> None:
    pods.start(0, *JOB, size=3)
    refused(pods.start(1, *JOB, size=2), "its group size is 2, the leader's is 3")


def another_command(pods: Pods) -> None:
    pods.start(0, "--", "serve-it", "--length", "8192", PATH=programs(pods, "serve-it"))
    worker = pods.start(1, "--", "serve-it", "--length", "4096", PATH=programs(pods, "serve-it"))
    refused(
        worker, "its command differs: digest [0-9a-f]{12}, the leader's is [0-9a-f]{12} .here: 4096; the leader's: 8192"
    )


def another_engine_version(pods: Pods) -> None:
    pods.start(0, *VLLM, **image(pods.directory / "one"))
    worker = pods.start(1, *VLLM, **image(pods.directory / "other", vllm="0.33.0"))
    refused(worker, "its engine is vllm 0.33.0, the leader's is vllm 0.32.0")


def another_ray_version(pods: Pods) -> None:
    pods.start(0, *VLLM, **image(pods.directory / "one"))
    worker = pods.start(1, *VLLM, **image(pods.directory / "other", ray="2.59.1"))
    refused(worker, "its Ray is 2.59.1, the leader's is 2.60.0")


def another_gpu_count(pods: Pods) -> None:
    environ = image(pods.directory / "one")
    pods.start(0, *VLLM, **environ)
    refused(pods.start(1, "--gpus-per-node=4", *VLLM[1:], **environ), "its GPU count is 4, the leader's is 8")


def programs(pods: Pods, name: str) -> str:
    program = pods.directory / "bin" / name
    if not program.exists():
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def refused(worker: Pod, why: str) -> None:
    """It asked again for --mismatch-timeout, then ended with the documented code and both sides' values."""
    assert worker.wait() == 77, worker.log
    assert re.search(f"WARNING: .*the leader refuses us: {why}.*asking again for 1 s", worker.log), worker.log
    last = rf"stopped because worker 1: refused for [12] s \(--mismatch-timeout\): .*{why}"
    assert re.search(last + ".*; worker 1 exits 77", worker.last_line), worker.log
    assert re.search(last, worker.file.with_suffix(".message").read_text())


MISMATCHES = [another_size, another_command, another_engine_version, another_ray_version, another_gpu_count]


@pytest.mark.parametrize("scenario", MISMATCHES, ids=lambda scenario: scenario.__name__)
def test_a_worker_that_is_configured_differently_asks_again_and_then_fails(
    scenario: Callable[[Pods], None], pods: Pods
) -> None:
    scenario(pods)
    pods.all[0].says("refused worker 1 at 127.0.0.[12]: its ")


@pytest.mark.parametrize(
    ("scenario", "off"),
    [(another_size, "mismatch_timeout"), (another_ray_version, "comparing"), (another_command, "command_digest")],
)
def test_without_its_mechanism_the_refusal_test_fails(
    scenario: Callable[[Pods], None], off: str, make_pods: MakePods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pod.wait, "__defaults__", (6.0,))
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        scenario(make_pods(off))


@pytest.mark.parametrize(
    ("leader", "worker", "size", "says"),
    [
        (("--", "true"), ("--", "sh", "-c", ":"), 2, "its command differs: digest"),
        (("--", "true"), ("--", "true"), 5, "its group size is 5, the leader's is 2"),
    ],
)
def test_with_mismatch_warn_the_leader_lets_it_in_and_says_what_differs(
    leader: tuple[str, ...], worker: tuple[str, ...], size: int, says: str, pods: Pods
) -> None:
    leads = pods.start(0, "--mismatch=warn", *leader)
    works = pods.start(1, *worker, size=size)
    assert (leads.wait(), works.wait()) == (0, 0), leads.log + works.log
    assert f"WARNING: worker 1 is let in although (--mismatch warn) {says}" in leads.log
    assert "WARNING: " in works.log
    assert "group formed: 2 of 2" in works.log


def test_exec_and_no_exec_are_never_mixed_whatever_mismatch_says(pods: Pods) -> None:
    pods.start(0, "--mismatch=warn", "--exec", *JOB)
    refused(pods.start(1, *JOB), "the leader runs with --exec, it without")


def test_pods_of_a_command_that_nobody_knows_may_have_different_gpus(pods: Pods) -> None:
    leader = pods.start(0, "--gpus-per-node=0", *JOB)
    assert pods.start(1, "--gpus-per-node=8", *JOB).wait() == 0
    assert "WARNING: the members differ in: GPU count" in leader.log


def test_what_a_pods_role_decides_is_no_difference(pods: Pods) -> None:
    worker = ("torchrun", "--node_rank", "1", "--nnodes=2", "--master-addr", "a", "train.py")
    leader = ("torchrun", "--node-rank=0", "--nnodes", "2", "train.py")
    path = programs(pods, "torchrun")
    leads = pods.start(0, "--backend=generic", "--", *leader, PATH=path)
    assert pods.start(1, "--backend=generic", "--", *worker, PATH=path).wait() == 0
    assert leads.wait() == 0


def test_a_worker_without_a_command_whose_image_differs_says_so(pods: Pods) -> None:
    pods.start(0, *VLLM, **image(pods.directory / "one"))
    worker = pods.start(1, "--gpus-per-node=8", **image(pods.directory / "other", ray="2.59.1"))
    assert worker.wait() == 78
    assert "this image's Ray version is 2.59.1, the leader's is 2.60.0" in worker.last_line


# ------------------------------------------------------------------ refused, but it may cure itself


def test_a_worker_of_another_group_is_refused_and_keeps_waiting(pods: Pods) -> None:
    leader = pods.start(0, "--group-id=a", *JOB)
    stranger = pods.start(1, "--group-id=b", "--gather-timeout=3s", *JOB)
    assert stranger.wait() == 75, stranger.log
    assert "the leader refuses us: it belongs to group 'b', this leader leads 'a'" in stranger.last_line
    assert len(re.findall("waiting . s for the leader at", stranger.log)) > 5
    assert "worker 1 (never seen)" in leader.log.splitlines()[-1], "a stranger was taken for our own worker"


def test_a_second_pod_with_a_taken_index_waits_until_the_first_is_gone(pods: Pods) -> None:
    leader = pods.start(0, *JOB, size=3)
    first = pods.start(1, *JOB, size=3)
    leader.says("worker 1 joined")
    second = pods.start(1, "--listen=127.0.0.9", "--pod-ip=127.0.0.9", *JOB, size=3)
    second.says("the leader refuses us: index 1 is taken by 127.0.0.2")
    first.process.kill()
    assert pods.start(2, *JOB, size=3).wait() == 0
    assert (leader.wait(), second.wait()) == (0, 0)


def test_a_draining_leader_refuses_and_the_worker_gets_the_next(pods: Pods) -> None:
    stubborn = "trap 'sleep 3; exit' TERM; echo up >&2; while :; do sleep 0.1; done"
    server = (
        "--kind=server",
        "--drain-delay=0",
        "--",
        "sh",
        "-c",
        f"[ {{index}} = 0 ] && {{ {stubborn}; }}; sleep 600",
    )
    leader = pods.start(0, *server)
    pods.start(1, *server)
    leader.says("\nup\n")  # it heeds no SIGTERM by now
    leader.process.send_signal(signal.SIGTERM)
    leader.says("asking the engine to end")
    late = pods.start(1, "--listen=127.0.0.9", "--pod-ip=127.0.0.9", *server)
    late.says("the leader refuses us: this leader is stopping")
    leader.wait()
    late.says("connection refused")
    pods.start(0, *server)
    late.says("group formed")


def test_other_groups_on_the_same_address_do_not_mix(pods: Pods, make_pods: MakePods) -> None:
    """Host networking: two groups on one node, each with a port of its own."""
    others = make_pods()
    started = [
        each.start(index, f"--group-id={name}", "--", "sh", "-c", f"echo {name}")
        for each, name in ((pods, "a"), (others, "b"))
        for index in (0, 1)
    ]
    assert [pod.wait() for pod in started] == [0, 0, 0, 0]


def test_two_groups_with_one_port_on_one_node_are_told_who_has_it(pods: Pods) -> None:
    first = pods.start(0, "--group-id=a", *JOB)
    first.says("waiting for 1 workers")
    second = pods.start(0, "--group-id=b", *JOB)
    assert second.wait() == 78
    assert re.search(rf"port {pods.port} is in use by \S+ \(pid {first.process.pid}\)", second.log)
    assert "with host networking, one port for each group on a node" in second.log


# ------------------------------------------------------------------ what those who wait say


def test_the_leader_says_of_every_absent_member_what_it_knows(pods: Pods) -> None:
    leader = pods.start(0, *JOB, size=6)
    pods.start(1, "--mismatch-timeout=1m", "--", "sh", "-c", ":", size=6)
    gone = pods.start(2, *JOB, size=6)
    leader.says("worker 2 joined")
    gone.process.kill()
    leader.says(
        r"waiting \d s for worker 1 \(refused: its command differs: .*\), worker 2 \(was here and left \d s ago from"
        r" 127.0.0.3: lost: the connection was closed\), workers 3 to 5 \(never seen\)"
    )


def test_a_worker_waits_for_a_leader_that_is_not_there_yet_and_says_why(pods: Pods) -> None:
    worker = pods.start(1, *JOB)
    worker.says(r"waiting \d s for the leader at 127.0.0.1 port \d+: 127.0.0.1: connection refused")
    pods.start(0, *JOB)
    assert worker.wait() == 0


@dataclass
class Network:
    """A network of its own, with a hosts file that can be rewritten, for one leader and one worker."""

    pods: Pods
    hosts: Path
    leader: str
    worker: str

    def name(self, *addresses: str) -> None:
        self.hosts.write_text("".join(f"{address} my-lws-0.my-lws.default\n" for address in addresses))

    def start(self, listen: str = "--listen=127.0.0.1", leader_after: str = "true") -> tuple[Pod, Pod]:
        """The worker at once; the leader when the shell command leader_after has ended. (worker, leader)"""
        same = f"--leader-address=my-lws-0.my-lws.default --size=2 --report-every=0.3s --port={self.pods.port}"
        lines = [
            "set -e",
            "ip link set lo up; ip link add quiet type veth peer name nobody; ip link set nobody up",
            "ip addr add 10.9.0.1/24 dev quiet; ip link set quiet up",
            "ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev quiet",
            f"mount --bind {self.hosts} /etc/hosts",
            f"{shlex.join(LWSRUN)} start {same} --index=1 --listen=127.0.0.2 -- true 2>{self.worker} &",
            f"{leader_after}",
            f"{shlex.join(LWSRUN)} start {same} --index=0 {listen} -- true 2>{self.leader}",
            "wait $!",
        ]
        own = ["--user", "--map-root-user"] if os.geteuid() else []
        shell = ["sh", "-c", "\n".join(lines)]
        pod = self.pods.run(["unshare", *own, "--mount", "--net", "--pid", "--fork", "--kill-child", *shell])
        return Pod(pod.process, Path(self.worker)), Pod(pod.process, Path(self.leader))


def network_of(pods: Pods) -> Network:
    for name in ("leader", "worker", "hosts"):
        (pods.directory / name).touch()
    return Network(pods, pods.directory / "hosts", str(pods.directory / "leader"), str(pods.directory / "worker"))


def a_name_that_changes(network: Network) -> None:
    """It is not there at first, then it is the address of a pod that has gone, then that of the leader."""
    go = network.pods.directory / "go"
    worker, _ = network.start(leader_after=f"until [ -e {go} ]; do sleep 0.1; done")
    worker.says("waiting . s for the leader at my-lws-0.my-lws.default port .*: its name does not resolve")
    network.name("127.0.0.9")
    worker.says("waiting . s for the leader at .*: 127.0.0.9: connection refused")
    network.name("127.0.0.1")
    go.touch()
    worker.says("joined the leader at 127.0.0.1")
    assert worker.wait() == 0


def a_name_with_a_dead_address(network: Network) -> None:
    """Packets to 10.9.0.2 vanish: that attempt is bounded, and the other address gets its turn each time."""
    network.name("10.9.0.2", "127.0.0.1")
    worker, _ = network.start(leader_after=f"until grep -q 'timed out' {network.worker}; do sleep 0.1; done")
    assert worker.wait(60) == 0  # its attempts at the dead address alone take 10 s
    assert re.search(
        "waiting .*: (10.9.0.2: timed out; 127.0.0.1: connection refused|127.0.0.1: .*; 10.9.0.2)", worker.log
    )


def both_families_of_which_only_ipv4_works(network: Network) -> None:
    network.name("::1", "127.0.0.1")
    worker, _ = network.start()
    worker.says("joined the leader at 127.0.0.1")
    assert worker.wait() == 0


def both_families_of_which_only_ipv6_works(network: Network) -> None:
    network.name("127.0.0.1", "::1")
    worker, _ = network.start("--listen=::1")
    worker.says("joined the leader at ::1")
    assert worker.wait() == 0


def ipv6_alone(network: Network) -> None:
    network.name("::1")
    worker, leader = network.start("--listen=::1")
    assert worker.wait() == 0
    assert "worker 1 joined from ::1" in leader.log


NAMES = [
    a_name_that_changes,
    a_name_with_a_dead_address,
    both_families_of_which_only_ipv4_works,
    both_families_of_which_only_ipv6_works,
    ipv6_alone,
]


@pytest.mark.parametrize("scenario", NAMES, ids=lambda scenario: scenario.__name__)
def test_a_worker_finds_the_leader_by(scenario: Callable[[Network], None], pods: Pods) -> None:
    scenario(network_of(pods))


@pytest.mark.parametrize(
    ("scenario", "off"),
    [
        (a_name_that_changes, "resolving_anew"),
        (both_families_of_which_only_ipv4_works, "every_address"),
        (a_name_with_a_dead_address, "every_address"),
    ],
)
def test_without_its_mechanism_the_worker_does_not_find_the_leader(
    scenario: Callable[[Network], None],
    off: str,
    make_pods: MakePods,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pod.says, "__defaults__", (8.0,))
    monkeypatch.setattr(Pod.wait, "__defaults__", (15.0,))
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        scenario(network_of(make_pods(off)))


# ------------------------------------------------------------------ what all should have in common


def test_when_the_group_has_formed_the_leader_shows_once_what_is_alike_and_what_is_not(pods: Pods) -> None:
    leader = pods.start(0, "--gpus-per-node=8", *JOB, size=3, NCCL_ALGO="Ring", NCCL_PROTO="LL")
    pods.start(1, "--gpus-per-node=8", *JOB, size=3, NCCL_ALGO="Ring", NCCL_PROTO="LL", NCCL_DEBUG="INFO")
    pods.start(2, "--gpus-per-node=8", *JOB, size=3, NCCL_PROTO="LL", NCCL_IB_HCA="mlx5_1")
    assert leader.wait() == 0
    lines = [line.partition("] ")[2] for line in leader.log.splitlines()]
    at = lines.index("WARNING: the members differ in: NCCL_ALGO")
    assert re.fullmatch(r"all 3: command [0-9a-f]{12}, 8 GPUs, NCCL_PROTO=LL", lines[at + 1])
    shown = [line.split() for line in lines[at + 2 : at + 6]]
    assert [(words[0], words[-1]) for words in shown] == [
        ("member", "NCCL_ALGO"), ("the", "Ring"), ("worker", "Ring"), ("worker", "none"),
    ]  # fmt: skip
    assert leader.log.count("all 3:") == 1


NVML = """
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 4
def nvmlDeviceGetHandleByIndex(at): return at
def nvmlDeviceGetName(at): return "NVIDIA H100 80GB HBM3"
def nvmlSystemGetDriverVersion(): return "%s"
"""


def test_the_gpus_and_their_driver_are_told_by_nvml(pods: Pods) -> None:
    for name, driver in (("one", "550.54.15"), ("other", "535.183.01")):
        (pods.directory / name).mkdir()
        (pods.directory / name / "pynvml.py").write_text(NVML % driver)
    leader = pods.start(0, *JOB, PYTHONPATH=str(pods.directory / "one"))
    assert pods.start(1, *JOB, PYTHONPATH=str(pods.directory / "other")).wait() == 0
    assert leader.wait() == 0
    assert "WARNING: the members differ in: driver" in leader.log
    assert re.search("all 2: command [0-9a-f]{12}, 4 GPUs, NVIDIA H100 80GB HBM3\n", leader.log)
    assert re.search(r"worker 1 .* 535.183.01\n", leader.log)


def test_a_mismatch_is_shown_as_a_table_the_first_time(pods: Pods) -> None:
    leader = pods.start(0, "--log-format=json", *JOB)
    assert pods.start(1, "--", "sh", "-c", ":").wait() == 77
    messages = [json.loads(line)["message"] for line in leader.log.splitlines()]
    assert messages.count("the members differ in: command") == 1
    rows = messages[messages.index("the members differ in: command") + 2 :]
    assert [row.split("  ")[0] for row in rows[:3]] == ["member", "the leader", "worker 1"]


# ------------------------------------------------------------------ a leader that takes no part


def test_a_leader_without_gpus_is_refused_its_workers_and_told_of_leader_excluded(pods: Pods) -> None:
    ray = ("--backend=ray", "--", "vllm", "chat")
    pods.start(0, "--gpus-per-node=0", *ray, **image(pods.directory / "one"))
    worker = pods.start(1, "--gpus-per-node=8", *ray, **image(pods.directory / "other"))
    refused(worker, "its GPU count is 8, the leader's is 0 .is the leader meant to have none.*--leader-excluded")


def test_with_leader_excluded_the_workers_are_compared_with_each_other(pods: Pods) -> None:
    ray = ("--leader-excluded", "--backend=ray", "--", "vllm", "chat")
    environ = image(pods.directory / "one")
    leader = pods.start(0, "--gpus-per-node=0", *ray, size=3, **environ)
    first = pods.start(2, "--gpus-per-node=8", *ray, size=3, **environ)
    first.says("joined the leader")
    refused(pods.start(1, "--gpus-per-node=4", *ray, size=3, **environ), "its GPU count is 4, worker 2's is 8")
    pods.start(1, "--gpus-per-node=8", *ray, size=3, **environ)
    leader.says(r"all 3: command .*, ray, Ray 2.60.0, 8 GPUs, Python 3.12.3")
    assert "--num-gpus=0" in leader.log


def test_vllm_refuses_a_leader_that_takes_no_part(tmp_path: Path) -> None:
    done = start("plan", "--size=3", "--gpus-per-node=8", "--image-ray=2.60.0", "--leader-excluded", *VLLM[1:])
    assert done.returncode == 78
    assert "--leader-excluded: vLLM's server cannot run on a leader that has no part" in done.stderr
