"""A Ray cluster over the group: the head on the leader, one worker on every other pod.

Where Ray's defaults are replaced, the reason stands beside the value. Ray's own behaviour was read from 2.60 and
measured; `ray start --block` is watched through the raylet that it stands for, because it stays when that ends.
"""

from __future__ import annotations

import os.path

from backends.errors import ConfigError, Fault
from backends.generic import main_argv
from backends.plan import (
    EnvVar,
    Kind,
    Main,
    Node,
    Plan,
    PortOpen,
    RayNodes,
    Request,
    Service,
    Stage,
    join_host_port,
    unless_set,
)
from backends.versions import at_least

TOKEN = "ray-token"  # the name in Request.secrets
TOKEN_SINCE = (2, 52)  # https://docs.ray.io/en/latest/ray-security/token-auth.html
MIB = 1 << 20
SMALLEST_STORE = 80 * MIB  # Ray refuses less than 75 MiB
LARGEST_STORE = 1024 * MIB


def plan_ray(request: Request) -> Plan:
    """Any program that finds its cluster through RAY_ADDRESS: it runs on the leader, the workers run Ray alone."""
    kind = request.options.kind or Kind.JOB
    if not request.node.ray:
        raise no_ray(request.node)
    main = Main(main_argv(request), kind) if request.group.is_leader else None
    return Plan(
        backend="ray",
        mode="Ray cluster",
        reason=f"--backend ray: the command runs on the leader, on a Ray cluster of {request.group.size}",
        kind=kind,
        env=cluster_env(request),
        services=(cluster_service(request),),
        gates=cluster_gates(request),
        main=main,
        leader_only=True,
    )


def no_ray(node: Node) -> ConfigError:
    return ConfigError(
        Fault(
            "this image has no Ray",
            f"the package ray beside {node.python}",
            "add `pip install ray` to the image (stock vLLM images have none since 0.19)",
        )
    )


def address(request: Request) -> str:
    return join_host_port(request.leader.ip, request.options.ray_port)


def object_store_bytes(shm_bytes: int | None) -> int:
    """A quarter of /dev/shm, 80 MiB to 1 GiB.

    Engines pass almost nothing through the object store, but they and NCCL need /dev/shm themselves; Ray's default
    takes 30 % of the pod's memory from it, and a request above its free size is moved to the slow temp directory.
    """
    if shm_bytes is None:
        return SMALLEST_STORE
    return max(SMALLEST_STORE, min(LARGEST_STORE, shm_bytes // 4))


def cluster_env(request: Request) -> tuple[EnvVar, ...]:
    """What every Ray process of this pod, and the engine, must see."""
    patience = round(request.options.peer_timeout + 5)
    env = list(
        unless_set(
            request,
            EnvVar("RAY_ADDRESS", address(request), "this group's Ray, not whichever answers first"),
            EnvVar("RAY_USAGE_STATS_ENABLED", "0", "no usage statistics leave the cluster"),
            EnvVar("RAY_DEDUP_LOGS", "0", "every node's log lines are shown"),
            EnvVar("RAY_memory_monitor_refresh_ms", "0", "Ray's memory monitor would kill engine workers at 95 %"),
            EnvVar("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0", "lwsrun drains; Ray's own 30 s eat the pod's grace"),
            EnvVar(
                "RAY_gcs_rpc_server_reconnect_timeout_s",
                str(patience),
                "a worker whose head is gone ends soon after --peer-timeout, not after Ray's 60 s",
            ),
            EnvVar(
                "RAY_health_check_failure_threshold",
                "10",
                "lwsrun notices dead nodes; Ray must not declare a starved one dead before that",
            ),
        )
    )
    token = request.secrets.get(TOKEN)
    theirs = any(name in request.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if token and supports_token(request.node) and not theirs:
        env.append(EnvVar("RAY_AUTH_MODE", "token", f"Ray {request.node.ray} can: nobody else uses this cluster"))
        env.append(EnvVar("RAY_AUTH_TOKEN", token, "minted for this run by the leader", secret=True))
    return tuple(env)


def supports_token(node: Node) -> bool:
    return at_least(node.ray, TOKEN_SINCE)


def cluster_service(request: Request) -> Service:
    """`ray start --block` as head or worker; the head does not wait for anybody, a worker waits for the head."""
    common = (
        f"--node-ip-address={request.node.ip}",
        f"--num-gpus={request.gpus_of(request.group.index)}",
        f"--object-store-memory={object_store_bytes(request.node.shm_bytes)}",
        "--disable-usage-stats",
        "--block",
    )
    start = (*ray_program(request.node), "start")
    if request.group.is_leader:
        argv = (*start, "--head", f"--port={request.options.ray_port}", "--include-dashboard=false", *common)
        return Service("ray-head", argv, Stage.ADMITTED, watch=("gcs_server", "raylet"))
    return Service(
        "ray-worker",
        (*start, f"--address={address(request)}", *common),
        Stage.ADMITTED,
        gates=(PortOpen(request.leader.ip, request.options.ray_port, "the Ray head"),),
        watch=("raylet",),
    )


def ray_program(node: Node) -> tuple[str, ...]:
    """The Ray that belongs to the engine's own interpreter, whatever PATH says."""
    if os.path.isabs(node.python):
        return (node.python, "-m", "ray.scripts.scripts")
    return ("ray",)


def cluster_gates(request: Request) -> tuple[RayNodes, ...]:
    """The leader's main process waits until Ray itself sees every node with its GPUs."""
    if not request.group.is_leader:
        return ()
    gpus = tuple((node.ip, request.gpus_of(index)) for index, node in enumerate(request.nodes))
    return (RayNodes(address(request), gpus, request.node.python),)
