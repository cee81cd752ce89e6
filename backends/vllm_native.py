"""Native multi-node vLLM: one replica over all nodes by torch.distributed, without Ray.

The leader serves; every other node runs headless workers. Nothing waits for the leader here: torch's rendezvous
repeats name look-up and connect until its own time-out of 10 min with NCCL, 30 with gloo (measured with 0.32), and the
imports of all nodes go on at the same time.
"""

from __future__ import annotations

from backends.layout import check_layout
from backends.plan import Plan
from backends.vllm_asked import Asked, Edit, even_gpus, refuse_headless_leader, refuse_older
from backends.vllm_engine import engine_plan
from backends.vllm_flags import NATIVE_SINCE

UNLIKE = "make all pods alike; or --vllm-mode ray, in an image with Ray, which takes them as they are"
REMEDY = "use a newer image, or install ray in this one: lwsrun then runs the model on Ray"


def plan_native(asked: Asked, reason: str) -> Plan:
    """TP × PP over all GPUs of the group. Raises ConfigError, LayoutError where nodes are unlike."""
    refuse_older(asked, NATIVE_SINCE, "native multi-node mode (--nnodes)", REMEDY)
    refuse_headless_leader(asked)
    even_gpus(asked, "native vLLM puts as many ranks on every node", UNLIKE)  # before what fits on unlike nodes is told
    if asked.sized:
        check_layout(asked.axes, asked.request.nodes)
    group, edit = asked.request.group, Edit(asked)
    edit.nodes()
    if not group.is_leader:
        edit.headless()
    part = "the leader, it serves" if group.is_leader else "it serves no HTTP"
    why = f"node {group.index} of {group.size}, {part}"
    return engine_plan(asked, edit, mode="native multi-node", reason=reason, why=why)
