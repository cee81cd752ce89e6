"""Checks of the node as this pod sees it: GPUs and driver, interface, RDMA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launcher.check.result import Result, failed, passed, skipped, warning
from launcher.check.scene import Scene
from launcher.fabric import SYS

GPU_REMEDY = (
    "request the GPUs in the pod template; if they are there and not seen, add `utility` to NVIDIA_DRIVER_CAPABILITIES,"
    " or say --gpus-per-node N"
)
CHOICE = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
RDMA_CHOICE = ("NCCL_IB_HCA", "NCCL_IB_GID_INDEX")


def gpus(scene: Scene) -> Iterator[Result]:
    """How many, by what, and the driver."""
    node = scene.node
    if node is None:
        yield failed("gpus", scene.node_error, "look at `nvidia-smi` in this pod; --gpus-per-node N tells their number")
    elif scene.plan is not None and scene.leads and scene.settings.options.leader_excluded:
        yield skipped("gpus", f"{node.gpus} here ({node.gpus_from}): the leader takes no part (--leader-excluded)")
    elif node.gpus == 0 and scene.backend == "generic":
        yield skipped("gpus", f"0 GPUs ({node.gpus_from}): whether the command needs any is its own matter")
    elif node.gpus == 0:
        yield warning("gpus", f"0 GPUs ({node.gpus_from})", GPU_REMEDY)
    else:
        found = f"{node.gpus} × {node.gpu_model or 'GPU'} ({node.gpus_from})"
        if node.driver is not None:
            yield passed("gpus", f"{found}, driver {node.driver}")
        else:
            yield warning("gpus", f"{found}, but NVML shows no driver: nobody can say whether they work", GPU_REMEDY)


def interface(scene: Scene) -> Iterator[Result]:
    """By which interface the ranks would talk, and why."""
    node = scene.node
    if node is None:
        yield skipped("interface", scene.node_error)
        return
    here = f"{node.ip} on {node.interface}" if node.interface else f"{node.ip}"
    if scene.size == 1:
        yield skipped("interface", f"a group of one needs none; this pod is {here}")
    elif node.interface is None:
        yield warning(
            "interface",
            f"no interface of this pod has its address {node.ip}: NCCL and Gloo will guess",
            "give this pod's address with --pod-ip, from the field status.podIP",
        )
    else:
        yield passed("interface", f"{here}; {_chosen(scene, CHOICE)}")


def _chosen(scene: Scene, names: tuple[str, ...]) -> str:
    planned = {variable.name: variable for variable in scene.plan.env} if scene.plan is not None else {}
    said = []
    for name in names:
        if name in scene.environ:
            said.append(f"{name}={scene.environ[name]} (set by you)")
        elif name in planned:
            said.append(f"{name}={planned[name].value} ({planned[name].reason})")
    return ", ".join(said) or ("no variable is needed for it" if scene.plan is not None else "there is no plan")


def rdma(scene: Scene) -> Iterator[Result]:
    """RoCE and InfiniBand ports that this pod may use, and the choice among them."""
    node = scene.node
    if node is None:
        yield skipped("rdma", scene.node_error)
        return
    shown = sorted(path.name for path in (SYS / "infiniband").glob("*"))
    if node.rdma:
        ports = ", ".join(f"{port.device}:{port.port} {port.link}" for port in node.rdma)
        yield passed("rdma", f"{ports}; {_chosen(scene, RDMA_CHOICE)}")
    elif shown and not any(Path("/dev/infiniband").glob("uverbs*")):
        yield warning(
            "rdma",
            f"the node has {', '.join(shown)}, but this pod may open none of them: NCCL will use TCP",
            "request the RDMA resource of the node's device plugin in the pod template (it mounts /dev/infiniband)",
        )
    elif shown:
        yield warning(
            "rdma", f"{', '.join(shown)}: none has an active port", "look at `ibstat` on the node: cables, switch"
        )
    else:
        yield skipped("rdma", "the node shows no RDMA device")
