"""`lwsrun plan`: the plans of a whole group with example names and addresses, and no effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends import smoke
from backends.errors import ConfigError, Fault
from backends.group import Group
from backends.plan import Node, Options, Request
from backends.plan_mpi import MpiTools
from backends.planner import make_plan
from backends.ray import TOKEN
from backends.render import plan_data, plan_text

ADDRESS = "my-lws-0.my-lws.default"
SHM = 8 << 30
SCRIPT = "launcher/smoke/collectives.py"  # of wherever the image has lwsrun


def preview(
    argv: tuple[str, ...],
    size: int,
    gpus: int,
    options: Options,
    *,
    ray: str | None,
    engine: str,
    openmpi: str,
    index: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[tuple[dict[str, Any], str]]:
    """(data, text) for each pod, or for one.

    ray, engine, openmpi: versions in the image; environ: what the pod's template sets.
    Raises ConfigError, also for an index outside the group.
    """
    if index is not None and index >= size:
        raise ConfigError(Fault(f"--index is {index}", f"0 to {size - 1}, because the size is {size}"))
    nodes = tuple(
        Node(
            ip=f"10.0.{(10 + i) // 256}.{(10 + i) % 256}",
            hostname="my-lws-0" if i == 0 else f"my-lws-0-{i}",
            gpus=0 if i == 0 and options.leader_excluded else gpus,
            gpus_from="--gpus-per-node",
            interface="eth0",
            interfaces=("lo", "eth0"),
            shm_bytes=SHM,
            ray=ray,
            engine_version=engine,
            openmpi=openmpi,
            mpi=_image(openmpi),
        )
        for i in range(size)
    )
    shown = []
    for i in range(size) if index is None else (index,):
        group = Group(ADDRESS, size, i, ADDRESS)
        request = Request(group, nodes, argv, options, environ or {}, {TOKEN: "minted per run"})
        made = make_plan(request)
        data, text = plan_data(group, nodes[i], made), plan_text(group, nodes[i], made)
        if options.smoke.first:
            first = make_plan(smoke.before(request, nodes[i].python, SCRIPT))
            data["smoke"] = plan_data(group, nodes[i], first)
            told = plan_text(group, nodes[i], first).partition("\n")[2].replace("  mode  ", "  before", 1)
            text += f"\n{told}"
        shown.append((data, text))
    return shown


def _image(openmpi: str) -> MpiTools:
    """As in NVIDIA's images of TensorRT-LLM, with OpenSSH beside it."""
    return MpiTools(
        "/dev/shm/lwsrun-mpi",
        mpirun="/usr/local/mpi/bin/mpirun",
        version=openmpi,
        daemon=f"/usr/local/mpi/bin/{'orted' if openmpi.startswith('4') else 'prted'}",
        ssh="/usr/bin/ssh",
        sshd="/usr/sbin/sshd",
        llmapi_launch="/usr/local/bin/trtllm-llmapi-launch",
        uid=0,
        user="root",
        home="/root",
        shell="/bin/bash",
        beside="/run/lwsrun-mpi",
    )
