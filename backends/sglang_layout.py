"""How SGLang shares its ranks out over nodes, and whether what a command asks for fits that and the group's GPUs.

The rules are those of _calculate_rank_ranges (sglang/srt/entrypoints/engine.py) and of srt/arg_groups, 0.5.23. SGLang
checks some of them, once it has loaded its libraries; a layout that leaves ranks out it takes, and waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends import argv
from backends.argv import Flag
from backends.errors import ConfigError, Fault
from backends.group import member_name
from backends.layout import LayoutError, check_layout, describe, fitting
from backends.plan import Node, Request

TP = Flag("--tp-size", shortest="--tp", also=(Flag("--tensor-parallel-size", shortest="--te"),))
PP = Flag("--pp-size", shortest="--pp-s", also=(Flag("--pipeline-parallel-size", shortest="--pi"),))
DP = Flag("--dp-size", shortest="--dp", also=(Flag("--data-parallel-size", shortest="--da"),))
ATTENTION_DP = Flag(
    "--attn-dp-size", shortest="--attn-d", also=(Flag("--attention-data-parallel-size", shortest="--attention-d"),)
)
DP_ATTENTION = Flag("--enable-dp-attention", takes_value=False)
ATTENTION_CP = Flag(
    "--attn-cp-size", shortest="--attn-c", also=(Flag("--attention-context-parallel-size", shortest="--attention-c"),)
)
PREFILL_CP = Flag("--enable-prefill-cp", shortest="--enable-prefill-c", takes_value=False)
DECODE_CP = Flag(
    "--dcp-size", shortest="--dcp-s", also=(Flag("--decode-context-parallel-size", shortest="--decode-c"),)
)
EP = Flag("--ep-size", ("--ep",), shortest="--ep-s", also=(Flag("--expert-parallel-size", shortest="--expert-p"),))
MOE_DP = Flag("--moe-dp-size", shortest="--moe-dp", also=(Flag("--moe-data-parallel-size", shortest="--moe-da"),))
DENSE_TP = Flag("--moe-dense-tp-size", shortest="--moe-de")
DEVICE = Flag("--device", shortest="--dev")
FIRST_GPU = Flag("--base-gpu-id", shortest="--bas")
GPU_STEP = Flag("--gpu-id-step", shortest="--gp")
AMBIGUOUS = Flag("--pp")


@dataclass(frozen=True)
class Layout:
    """The sizes that a command asks for. tp and pp give the ranks; the others divide tp, dp multiplies them all.

    uncounted: the device of which nobody knows how many a node has, as the user named it. first_gpu and gpu_step place
    the ranks on a node's GPUs; placed: the user said so. given: TP or PP stand in the command.
    """

    nodes: int
    tp: int
    pp: int
    dp: int
    attention_dp: int
    attention_cp: int
    decode_cp: int
    ep: int
    moe_dp: int
    dense_tp: int
    first_gpu: int
    gpu_step: int
    placed: bool
    given: bool
    uncounted: str

    @property
    def ranks(self) -> int:
        return self.tp * self.pp

    @property
    def on_each_node(self) -> int:
        """What SGLang starts on every node, right or not."""
        stages = max(self.pp // self.nodes, 1)
        return stages * (self.tp // max(self.nodes // self.pp, 1))

    def told(self) -> str:
        parts = [f"TP {self.tp}"]
        sizes = (("PP", self.pp), ("attention DP", self.attention_dp), ("EP", self.ep))
        parts += [f"{name} {degree}" for name, degree in sizes if degree > 1]
        return f"{', '.join(parts)}: {self.on_each_node} rank{'s' if self.on_each_node != 1 else ''} on each node"


def read(arguments: tuple[str, ...], request: Request) -> Layout:
    """The layout of a command. Raises ConfigError for a size that is no number."""
    if argv.find(arguments, AMBIGUOUS):
        raise ConfigError(
            Fault(
                "--pp may be several of SGLang's options, and its parser refuses it",
                f"{PP.name} N",
                f"write {PP.name}, which every version understands",
            )
        )

    def size(flag: Flag, default: int = 1, lowest: int = 1) -> int:
        return argv.whole_number(arguments, flag, default, lowest)

    replicas, attention_dp, attention_cp = size(DP), size(ATTENTION_DP), size(ATTENTION_CP)
    by_context = attention_cp > 1 or bool(argv.find(arguments, PREFILL_CP))
    if attention_dp == 1 and (argv.find(arguments, DP_ATTENTION) or by_context):
        replicas, attention_dp = 1, replicas  # the older spelling
    placed = bool(argv.find(arguments, FIRST_GPU) or argv.find(arguments, GPU_STEP))
    return Layout(
        nodes=request.group.size,
        tp=size(TP),
        pp=size(PP),
        dp=replicas,
        attention_dp=attention_dp,
        attention_cp=attention_cp,
        decode_cp=size(DECODE_CP),
        ep=size(EP),
        moe_dp=size(MOE_DP),
        dense_tp=size(DENSE_TP),
        first_gpu=size(FIRST_GPU, default=0, lowest=0),
        gpu_step=size(GPU_STEP),
        placed=placed,
        given=bool(argv.find(arguments, TP) or argv.find(arguments, PP)),
        uncounted=_uncounted(arguments, request),
    )


def _uncounted(arguments: tuple[str, ...], request: Request) -> str:
    device = argv.text(arguments, DEVICE)
    if device is None:
        return "SGLANG_USE_CPU_ENGINE=1" if request.environ.get("SGLANG_USE_CPU_ENGINE") == "1" else ""
    counted = device != "cpu" and request.node.gpus_from == "--gpus-per-node"
    return "" if device == "cuda" or counted else f"{DEVICE.name} {device}"


def check(layout: Layout, request: Request) -> None:
    """Raise LayoutError for a layout that does not fit the group's GPUs or SGLang's own rules."""
    counted = not layout.uncounted
    if layout.nodes > 1:
        _check_replicas(layout)
        if counted and not layout.placed:
            _check_even(request.nodes)
            check_layout([("TP", layout.tp), ("PP", layout.pp)], request.nodes)
        _check_shares(layout, request.nodes)
        if counted:
            _check_each_node(layout, request.nodes)
    elif counted and request.node.gpus and layout.ranks * layout.dp > request.node.gpus:
        # Fewer than the node has is legal (several servers may share it); none may mean that they were not seen.
        replicas = [("DP", layout.dp)] if layout.dp > 1 else []
        check_layout([("TP", layout.tp), ("PP", layout.pp), *replicas], request.nodes)
    _check_parts(layout)


def _check_replicas(layout: Layout) -> None:
    if layout.dp > 1:
        raise LayoutError(
            Fault(
                f"{DP.name} {layout.dp} over {layout.nodes} nodes: SGLang runs whole replicas on one node only",
                "attention DP, which splits TP",
                f"{ATTENTION_DP.name} {layout.dp} (before it existed: {DP.name} {layout.dp} {DP_ATTENTION.name}), with"
                f" {TP.name} over all GPUs; or a group for each replica",
            )
        )


def _check_even(nodes: Sequence[Node]) -> None:
    """On nodes that differ no layout uses every GPU: SGLang starts as many ranks on each."""
    fewest = min(node.gpus for node in nodes)
    if any(node.gpus != fewest for node in nodes):
        some = f"; or {TP.name} {fewest * len(nodes)} {FIRST_GPU.name} 0, which uses {fewest} GPUs of each"
        raise LayoutError(
            Fault(
                f"SGLang starts as many ranks on every node, but the group has {describe(nodes)} GPUs",
                "the same number of GPUs on every node",
                "give all pods the same number" + (some if fewest else ""),
            )
        )


def _check_shares(layout: Layout, nodes: Sequence[Node]) -> None:
    """Stages must have whole nodes, or nodes whole stages; else SGLang leaves ranks out, or starts too many."""
    sizes, ranks, each = f"TP {layout.tp} × PP {layout.pp}", layout.ranks, layout.on_each_node
    if ranks % layout.nodes:
        found = f"{sizes} = {ranks} ranks cannot be shared evenly by {layout.nodes} nodes"
        expected = f"TP × PP that is a multiple of {layout.nodes}"
    elif layout.pp % layout.nodes and layout.nodes % layout.pp:
        found = (
            f"{sizes} on {layout.nodes} nodes: SGLang starts {each} ranks on each node = {each * layout.nodes},"
            f" but the model has {ranks}: they would wait for each other for ever"
        )
        expected = "a PP that divides the number of nodes or is a multiple of it"
    else:
        return
    share = -(-ranks // layout.nodes)
    fits = fitting(nodes if not layout.uncounted else [replace(node, gpus=share) for node in nodes])
    raise LayoutError(Fault(found, expected, f"fits: {', '.join(fits)}"))


def _check_each_node(layout: Layout, nodes: Sequence[Node]) -> None:
    last = layout.first_gpu + (layout.on_each_node - 1) * layout.gpu_step
    for index, node in enumerate(nodes):
        if last >= node.gpus:
            why = f" ({FIRST_GPU.name}, {GPU_STEP.name})" if layout.placed else ""
            raise LayoutError(
                Fault(
                    f"SGLang starts {layout.on_each_node} ranks on every node, the last on GPU {last}{why};"
                    f" {member_name(index)} has {node.gpus} GPUs: {describe(nodes)}",
                    f"at least {last + 1} GPUs on every node",
                    "give all pods the same number of GPUs, and ranks that they have room for",
                )
            )


def _check_parts(layout: Layout) -> None:
    """What TP is divided into. SGLang says the same, but each pod only after it has loaded its libraries."""
    tp = layout.tp
    parts = (
        (ATTENTION_DP.name, layout.attention_dp * layout.attention_cp, "attention DP × attention CP"),
        (EP.name, layout.ep * layout.moe_dp, "EP × MoE DP"),
        (DECODE_CP.name, layout.decode_cp, "decode CP"),
    )
    for flag, degree, what in parts:
        if tp % degree:
            divisors = [str(n) for n in range(1, tp + 1) if tp % n == 0]
            raise LayoutError(
                Fault(
                    f"{what} {degree} ({flag}) does not divide TP {tp}",
                    f"a divisor of {tp}: {', '.join(divisors)}",
                )
            )
    if layout.dense_tp not in (1, tp):
        raise LayoutError(Fault(f"{DENSE_TP.name} is {layout.dense_tp}", f"1 or TP, which is {tp}"))
