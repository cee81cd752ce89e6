"""Who is let into a group, who is refused and for how long he asks again, and what those who wait say meanwhile.

Real launchers on loopback addresses. Each scenario with a twin in tests/sabotage must fail without its mechanism.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import start
from loopback import Pod, Pods, member_side

from launcher.channel import messages as m

JOB = ("--", "true")


MakePods = Callable[..., Pods]


@pytest.fixture
def make_pods(tmp_path: Path) -> Iterator[MakePods]:
    with contextlib.ExitStack() as made:

        def make(sabotage: str = "") -> Pods:
            return made.enter_context(Pods(tmp_path / f"pods-{len(list(tmp_path.iterdir()))}", sabotage))

        yield make


@pytest.fixture
def pods(make_pods: MakePods) -> Pods:
    return make_pods()


def image(
    directory: Path, *, vllm: str = "0.32.0", sglang: str = "0.5.23", ray: str = "2.60.0", python: str = "3.12.3"
) -> dict[str, str]:
    """The environment of a pod whose image has such engines: its Python only tells versions, everything else waits."""
    directory.mkdir()
    versions = json.dumps({"vllm": vllm, "sglang": sglang, "ray": ray, "python": python})
    interpreter = directory / "python3"
    interpreter.write_text(f"#!/bin/sh\n[ \"$1\" = -c ] && echo '{versions}' && exit\nexec sleep 600\n")
    programs = [directory / "vllm", directory / "sglang"]
    for program in programs:
        program.write_text(f"#!{interpreter}\n")
    for file in (interpreter, *programs):
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


def another_sglang_version(pods: Pods) -> None:
    command = ("--gpus-per-node=8", "--", "sglang", "serve", "m", "--tp", "16")
    pods.start(0, *command, **image(pods.directory / "one"))
    worker = pods.start(1, *command, **image(pods.directory / "other", sglang="0.5.22"))
    refused(worker, "its engine is sglang 0.5.22, the leader's is sglang 0.5.23")


def another_ray_version(pods: Pods) -> None:
    pods.start(0, *VLLM, **image(pods.directory / "one"))
    worker = pods.start(1, *VLLM, **image(pods.directory / "other", ray="2.59.1"))
    refused(worker, "its Ray is 2.59.1, the leader's is 2.60.0")


def another_gpu_count(pods: Pods) -> None:
    environ = image(pods.directory / "one")
    pods.start(0, *VLLM, **environ)
    refused(pods.start(1, "--gpus-per-node=4", *VLLM[1:], **environ), "its GPU count is 4, the leader's is 8")


def another_kind(pods: Pods) -> None:
    pods.start(0, "--kind=server", *JOB)
    refused(pods.start(1, *JOB), "its --kind is job, the leader's is server .say the same in both templates")


def another_ray_port(pods: Pods) -> None:
    environ = image(pods.directory / "one")
    pods.start(0, *VLLM, **environ)
    worker = pods.start(1, "--ray-port=6380", *VLLM, **environ)
    refused(worker, "its --ray-port is 6380, the leader's is 6379 .say the same in both templates")


def another_ray_port_without_a_command(pods: Pods) -> None:
    pods.start(0, *VLLM, **image(pods.directory / "one"))
    worker = pods.start(1, "--gpus-per-node=8", "--ray-port=6380", **image(pods.directory / "other"))
    refused(worker, "its --ray-port is 6380, the leader's is 6379 .say the same in both templates")


def leader_excluded_on_the_leader_alone(pods: Pods) -> None:
    pods.start(0, "--leader-excluded", *JOB)
    refused(pods.start(1, *JOB), "the leader runs with --leader-excluded, it without .say it in both templates or in")


def leader_excluded_on_the_worker_alone(pods: Pods) -> None:
    pods.start(0, *JOB)
    refused(pods.start(1, "--leader-excluded", *JOB), "it runs with --leader-excluded, the leader without .say it in")


def another_mode(pods: Pods) -> None:
    environ = image(pods.directory / "one")
    pods.start(0, *VLLM, **environ)
    worker = pods.start(1, "--vllm-mode=native", *VLLM, **environ)
    refused(worker, "its mode is vllm, native multi-node, the leader's is vllm, Ray .say the same of it in both")


def another_sglang_rendezvous_port(pods: Pods) -> None:
    command = ("--gpus-per-node=8", "--", "sglang", "serve", "m", "--tp", "16")
    environ = image(pods.directory / "one")
    pods.start(0, *command, **environ)
    worker = pods.start(1, *command, "--port=20000", **environ)
    refused(
        worker,
        "its mode is sglang, multi-node, rendezvous port 20100, the leader's is sglang, multi-node, rendezvous port"
        " 20000 .say the same of it in both templates",
    )


def another_torchrun_port(pods: Pods) -> None:
    path = programs(pods, "torchrun")
    pods.start(0, "--", "torchrun", "train.py", PATH=path)
    worker = pods.start(1, "--", "torchrun", "--master-port", "1234", "train.py", PATH=path)
    refused(
        worker,
        "its mode is torchrun, static rendezvous, port 1234, the leader's is torchrun, static rendezvous, port 29500"
        " .say the same of it in both templates",
    )


def another_torchrun_backend(pods: Pods) -> None:
    path = programs(pods, "torchrun")
    pods.start(0, "--", "torchrun", "train.py", PATH=path)
    worker = pods.start(1, "--", "torchrun", "train.py", PATH=path, PET_RDZV_BACKEND="c10d")
    refused(worker, "its mode is torchrun, c10d rendezvous, port 29500, the leader's is torchrun, static rendezvous")


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
    last = rf"stopped because worker 1: refused for \d+ s \(--mismatch-timeout\): .*{why}"
    assert re.search(last + ".*; worker 1 exits 77", worker.last_line), worker.log
    assert re.search(last, worker.message)


MISMATCHES = [
    another_size,
    another_command,
    another_engine_version,
    another_sglang_version,
    another_ray_version,
    another_gpu_count,
    another_kind,
    another_mode,
    another_sglang_rendezvous_port,
    another_torchrun_port,
    another_torchrun_backend,
    another_ray_port,
    another_ray_port_without_a_command,
    leader_excluded_on_the_leader_alone,
    leader_excluded_on_the_worker_alone,
]


@pytest.mark.parametrize("scenario", MISMATCHES, ids=lambda scenario: scenario.__name__)
def test_a_worker_that_is_configured_differently_asks_again_and_then_fails(
    scenario: Callable[[Pods], None], pods: Pods
) -> None:
    scenario(pods)
    pods.all[0].says("refused worker 1 at 127.0.0.[12]: (its|it runs|the leader runs) ")


@pytest.mark.parametrize(
    ("scenario", "off"),
    [
        (another_size, "mismatch_timeout"),
        (another_ray_version, "comparing"),
        (another_kind, "comparing"),
        (another_command, "command_digest"),
    ],
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


def test_replicas_are_shared_out_over_nodes_with_unlike_gpus(pods: Pods) -> None:
    command = ("--", "vllm", "serve", "m", "-tp", "4", "-dp", "3")
    environ = image(pods.directory / "one")
    leads = pods.start(0, "--mismatch=warn", "--gpus-per-node=8", *command, **environ)
    works = pods.start(1, "--mismatch=warn", "--gpus-per-node=4", *command, **environ)
    leads.says("running: .* --data-parallel-size-local 2 ")
    works.says("waiting .* s for vLLM's front end on the leader|until vLLM's front end")
    assert "its GPU count is 4, the leader's is 8" in leads.log


def test_exec_and_no_exec_are_never_mixed_whatever_mismatch_says(pods: Pods) -> None:
    pods.start(0, "--mismatch=warn", "--exec", *JOB)
    refused(pods.start(1, *JOB), "the leader runs with --exec, it without")


def test_a_ray_port_that_nobody_needs_is_no_difference(pods: Pods) -> None:
    leader = pods.start(0, *JOB)
    assert pods.start(1, "--ray-port=6380", *JOB).wait() == 0
    assert leader.wait() == 0


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


@pytest.mark.parametrize(("rank", "codes"), [("0", (78, 75)), ("{index}", (0, 0))])
def test_a_worker_without_a_command_has_the_leaders_rank_where_that_is_written_out(
    rank: str, codes: tuple[int, int], pods: Pods
) -> None:
    path = programs(pods, "torchrun")
    leader = pods.start(0, "--", "torchrun", "--node-rank", rank, "train.py", PATH=path)
    worker = pods.start(1, PATH=path)
    assert (worker.wait(), leader.wait()) == codes, worker.log + leader.log
    assert ("--node-rank is 0, but this pod is index 1 of the group" in worker.last_line) is (rank == "0")


def test_a_worker_without_a_command_has_the_leaders_smoke_run_whole(pods: Pods, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\ncase "$1" in *collectives.py) shift; echo "$@" at $MASTER_PORT;; esac\n')
    python.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    smoke = ("--smoke", "--procs-per-node=2", "--smoke-port=31111", "--smoke-timeout=7s", "--smoke-slow=3")
    pods.start(0, *smoke, *SERVER, PATH=path)
    worker = pods.start(1, PATH=path)
    worker.says("--index=1 --procs=2,2 --backend=gloo --timeout=7 --slow=3 at 31111")
    worker.says("running: sleep")


def test_a_worker_without_a_command_gets_the_leaders_kind_with_it(pods: Pods) -> None:
    leader = pods.start(0, "--kind=server", "--", "sh", "-c", "[ {index} = 1 ] || sleep 600")
    worker = pods.start(1)
    assert (worker.wait(), leader.wait()) == (70, 75), "for a job the worker's end would be its success"
    assert "exited 0, although nobody asked it to stop" in worker.last_line


# ------------------------------------------------------------------ what counts is the leader's


SERVER = ("--kind=server", "--", "sleep", "600")


def test_silence_is_judged_by_the_leaders_peer_timeout_where_the_workers_is_longer(pods: Pods) -> None:
    leader = pods.start(0, "--peer-timeout=2s", *SERVER)
    worker = pods.start(1, "--peer-timeout=1h", *SERVER)
    worker.says("--peer-timeout is 3600 s here, the leader's is 2 s, which counts")
    worker.says("running: sleep")
    leader.process.send_signal(signal.SIGSTOP)
    assert worker.wait(10) == 75
    assert re.search("the leader: lost: nothing was heard from it for [23] s", worker.last_line)


def test_silence_is_judged_by_the_leaders_peer_timeout_where_the_workers_is_shorter(pods: Pods) -> None:
    leader = pods.start(0, "--peer-timeout=1m", *SERVER)
    # By its own it would ask for a sign of life 50 times a second, and be cut off by the leader for that.
    worker = pods.start(1, "--peer-timeout=0.1s", *SERVER)
    worker.says("running: sleep")
    leader.process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(4)
    leader.process.send_signal(signal.SIGCONT)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(4)
    assert [member["index"] for member in leader.group()["members"]] == [0, 1]


# ------------------------------------------------------------------ refused, but it may cure itself


def let_in_by_the_next_leader(pods: Pods, refused_as: str, why: str, next_environ: dict[str, str], **ours: str) -> None:
    """A member asks a leader that refuses it, for longer than --mismatch-timeout, until another leads. ours may name
    the leader's {run}."""
    leader = pods.start(0, *SERVER)
    leader.says("waiting for 1 workers")
    run = leader.group()["run"]
    given = {name: value.format(run=run) for name, value in ours.items()}

    async def ask() -> m.Welcome:
        member = member_side(pods.port, mismatch_timeout=0.5, **given)
        joining = asyncio.create_task(member.join())
        try:
            await asyncio.sleep(2)
            assert re.search(why.format(run=run), member.why_waiting)
            assert leader.group()["joins_refused"].keys() == {refused_as}
            leader.says(f"refused worker 1 at 127.0.0.1: {why.format(run=run)}")
            leader.process.kill()
            pods.start(0, *SERVER, **next_environ)
            async with asyncio.timeout(20):
                return await joining
        finally:
            joining.cancel()
            await member.close()

    assert asyncio.run(ask()).run != run


def test_a_member_of_an_earlier_run_is_refused_until_there_is_another(pods: Pods) -> None:
    let_in_by_the_next_leader(pods, "run", "it was lost from run {run}, which goes on without it", {}, left="{run}")


def test_a_member_of_another_protocol_is_refused_until_the_leader_speaks_it_too(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = pods.directory / "sitecustomize.py"
    mine, next_one = m.VERSION, m.VERSION + 1
    newer.write_text(f"from launcher.channel import messages\nmessages.VERSION = {next_one}\n")
    monkeypatch.setattr(m, "VERSION", next_one)
    why = f"it speaks protocol {next_one}, the leader {mine}: same lwsrun."
    let_in_by_the_next_leader(pods, "protocol", why, {"PYTHONPATH": str(pods.directory)})


def test_a_node_too_long_to_be_told_to_all_is_refused(pods: Pods) -> None:
    leader = pods.start(0, *SERVER)
    leader.says("waiting for 1 workers")

    async def ask() -> str:
        member = member_side(pods.port, node=lambda _: m.NodeFacts("127.0.0.2", "h" * 1000, 0))
        joining = asyncio.create_task(member.join())
        await asyncio.sleep(1)
        joining.cancel()
        await member.close()
        return member.why_waiting

    assert re.search("its address, host name and versions take 1... bytes of 384", asyncio.run(ask()))
    pods.start(1, *SERVER).says("running: sleep")


def test_a_command_too_long_to_be_handed_over_is_a_configuration_error(pods: Pods) -> None:
    leader = pods.start(0, "--", "true", *["x" * 100_000] * 3)
    assert leader.wait() == 78
    assert re.search("the command is too long for the group channel: 29. KiB", leader.last_line)


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
def nvmlDeviceGetUUID(at): return f"GPU-{at}"
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
