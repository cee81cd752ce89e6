"""What --preset adds to a command that runs as it is: the variables by which one kind of image learns its role."""

from __future__ import annotations

from backends.plan import EnvVar, Request, unless_set

NAMES = ("nim",)


def nim_env(request: Request) -> tuple[EnvVar, ...]:
    """NVIDIA NIM's role variables, for a group of more than one; what the user set is left alone.

    Their names and values are those that NVIDIA's own operator sets (api/apps/v1alpha1/nimservice_types.go in
    https://github.com/NVIDIA/k8s-nim-operator, GetLWSLeaderEnv, GetLWSWorkerEnv) and, for the leader's address, its
    Slurm jobs (https://github.com/NVIDIA/cloudai). TP = GPUs of a node and PP = nodes is what NIM's documentation
    calls the usual layout: https://docs.nvidia.com/nim/large-language-models/latest/deployment/multi-node-deployment.html
    """
    group = request.group
    if group.size == 1:
        return ()
    return unless_set(
        request,
        EnvVar("NIM_MULTI_NODE", "1", "the model spans nodes"),
        EnvVar("NIM_NUM_COMPUTE_NODES", str(group.size), "the group's size"),
        EnvVar("NIM_NODE_RANK", str(group.index), "this pod's index"),
        EnvVar("NIM_LEADER_ROLE", "1" if group.is_leader else "0", "whether this pod leads"),
        EnvVar("NIM_LEADER_IP_ADDRESS", request.leader.ip, "the leader's address, as an IP"),
        *_layout(request),
    )


def _layout(request: Request) -> tuple[EnvVar, ...]:
    """TP and PP, where the group's GPUs tell them: both, or the one that is missing."""
    total = sum(node.gpus for node in request.nodes)
    tensor, pipeline = (request.environ.get(f"NIM_{axis}_PARALLEL_SIZE") for axis in ("TENSOR", "PIPELINE"))
    if total == 0 or len({node.gpus for node in request.nodes}) > 1:
        return ()
    if tensor is None and pipeline is None:
        return (
            EnvVar("NIM_TENSOR_PARALLEL_SIZE", str(request.node.gpus), "the GPUs of a node"),
            EnvVar("NIM_PIPELINE_PARALLEL_SIZE", str(request.group.size), "the nodes of the group"),
        )
    given = int(text) if (text := tensor or pipeline or "").isascii() and text.isdigit() and len(text) < 10 else 0
    if given == 0 or total % given:
        return ()
    rest = "PIPELINE" if pipeline is None else "TENSOR"
    return (EnvVar(f"NIM_{rest}_PARALLEL_SIZE", str(total // given), f"what is left of {total} GPUs"),)
