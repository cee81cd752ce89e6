"""What a smoke run is planned to be, on every pod."""

from __future__ import annotations

import pytest

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import Kind, Node, Options, Plan, Request, Smoke
from backends.planner import make_plan
from backends.render import plan_text
from backends.smoke import before

SCRIPT = "/opt/lwsrun/launcher/smoke/collectives.py"
URL = "http://localhost:8000/health"


def request(index: int, gpus: tuple[int, ...], smoke: Smoke | None = None, **options: object) -> Request:
    nodes = tuple(
        Node(f"10.0.0.1{at}", f"pod-{at}", count, interface="eth0", interfaces=("lo", "eth0"))
        for at, count in enumerate(gpus)
    )
    chosen = Options(backend="smoke", smoke=smoke or Smoke(), **options)  # type: ignore[arg-type]
    return Request(Group("leader", len(gpus), index, "leader"), nodes, ("python3", SCRIPT), chosen)


def planned(index: int, gpus: tuple[int, ...], smoke: Smoke | None = None, **options: object) -> Plan:
    return make_plan(request(index, gpus, smoke, **options))


def argv(plan: Plan) -> list[str]:
    assert plan.main is not None
    return list(plan.main.argv[2:])


def test_the_plan_as_it_was_reviewed() -> None:
    asked = request(1, (8, 8))
    assert plan_text(asked.group, asked.node, make_plan(asked)) == "\n".join([
        "worker 1 of 2 · pod-1 · 10.0.0.11 · 8 GPUs",
        "  mode    smoke, collectives: nccl: a process for each GPU",
        "  set     MASTER_ADDR=10.0.0.10  # the leader's address, as an IP",
        "  set     MASTER_PORT=29470  # where the smoke run's processes meet (--smoke-port)",
        "  set     NCCL_SOCKET_IFNAME=eth0  # it routes to the leader",
        "  set     GLOO_SOCKET_IFNAME=eth0  # it routes to the leader",
        "  set     TP_SOCKET_IFNAME=eth0  # it routes to the leader",
        f"  run     python3 {SCRIPT} --index=1 --procs=8,8 --backend=nccl --timeout=60  (job)",
        "  added   16 ranks over the group, here 8: nccl, a process for each GPU",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("gpus", "smoke", "options", "procs", "backend"),
    [
        ((8, 8), Smoke(), {}, "8,8", "nccl"),
        ((8, 4), Smoke(), {}, "8,4", "nccl"),
        ((8, 8), Smoke(procs_per_node=2), {}, "2,2", "nccl"),
        ((1,), Smoke(), {}, "1", "nccl"),
        ((0, 0), Smoke(), {}, "1,1", "gloo"),
        ((0, 0), Smoke(procs_per_node=3), {}, "3,3", "gloo"),
        ((8, 8), Smoke(backend="gloo"), {}, "1,1", "gloo"),
        ((0, 8, 8), Smoke(), {"leader_excluded": True}, "0,8,8", "nccl"),
        ((0, 0, 0), Smoke(backend="nccl"), {"leader_excluded": True}, "0,1,1", "nccl"),  # the leader, before it knows
    ],
)
def test_there_is_a_process_for_each_gpu_or_as_many_as_were_asked_for(
    gpus: tuple[int, ...], smoke: Smoke, options: dict[str, object], procs: str, backend: str
) -> None:
    arguments = argv(planned(0, gpus, smoke, **options))
    assert f"--procs={procs}" in arguments
    assert f"--backend={backend}" in arguments


@pytest.mark.parametrize(
    ("gpus", "smoke", "says"),
    [
        ((0, 8), Smoke(), "GPUs on some nodes only: none on 0"),
        ((8, 8), Smoke(procs_per_node=9), "--procs-per-node 9 with NCCL, but 8 GPUs"),
        ((0, 0), Smoke(backend="nccl"), "--procs-per-node 1 with NCCL, but 0 GPUs"),
    ],
)
def test_what_nccl_cannot_do_is_refused(gpus: tuple[int, ...], smoke: Smoke, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        planned(0, gpus, smoke)


def test_the_engines_own_rendezvous_is_not_used_and_not_changed() -> None:
    asked = Request(
        Group("leader", 1, 0, "leader"), (Node("10.0.0.10", "pod-0", 0),), ("serve",),
        Options(kind=Kind.SERVER, preset="nim", health_url=URL, smoke=Smoke(first=True, port=1234)),
        {"MASTER_PORT": "29500"},
    )  # fmt: skip
    smoke = make_plan(before(asked, "python3", SCRIPT))
    assert smoke.kind is Kind.JOB
    assert smoke.main is not None
    assert smoke.main.health is None
    assert smoke.environ(asked.environ)["MASTER_PORT"] == "1234"
    assert make_plan(asked).environ(asked.environ)["MASTER_PORT"] == "29500"


def test_all_pods_must_mean_the_same_run() -> None:
    def agreed(smoke: Smoke, backend: str) -> tuple[str, ...]:
        asked = request(0, (0, 0), smoke)
        command = asked.argv if backend == "smoke" else ("serve",)
        return make_plan(Request(asked.group, asked.nodes, command, Options(backend=backend, smoke=smoke))).agreed

    assert agreed(Smoke(first=True), "generic") == ("first smoke run on each GPU by auto at port 29470",)
    assert agreed(Smoke(), "generic") == ()
    assert agreed(Smoke(), "smoke") == agreed(Smoke(timeout=9), "smoke")
    assert len({agreed(each, "smoke") for each in (Smoke(), Smoke(port=1), Smoke(procs_per_node=2))}) == 3
