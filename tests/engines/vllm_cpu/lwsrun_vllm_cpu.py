"""The two things that vLLM's CPU platform lacks for Ray on several nodes. For test environments only.

- The name of the resource that stands for a device. Simulated nodes announce faked GPUs (`ray start --num-gpus`).
- Ranks on different nodes share no /dev/shm; the CPU communicator believes so when only their ports agree, and
  fails with "open shm in SHMManager failed".

A platform plugin, not a general one, because Ray's actors ask for the name before they load general plugins.
"""


def platform() -> str:
    return "lwsrun_vllm_cpu.RayCpuPlatform"


def _platform() -> type:
    from vllm.platforms.cpu import CpuPlatform

    class RayCpuPlatform(CpuPlatform):
        ray_device_key = "GPU"

        @classmethod
        def get_device_communicator_cls(cls) -> str:
            return "lwsrun_vllm_cpu.NodeAwareCommunicator"

    return RayCpuPlatform


def _communicator() -> type:
    import socket

    import torch
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    class NodeAwareCommunicator(CpuCommunicator):
        def _all_group_ranks_share_shm_group_name(self) -> bool:
            hosts = [""] * self.world_size
            torch.distributed.all_gather_object(hosts, socket.gethostname(), group=self.device_group)
            return len(set(hosts)) == 1 and super()._all_group_ranks_share_shm_group_name()

    return NodeAwareCommunicator


_LATE = {"RayCpuPlatform": _platform, "NodeAwareCommunicator": _communicator}


def __getattr__(name: str) -> type:
    # vLLM imports this module while it is still choosing its platform: base classes must be asked for late.
    if name not in _LATE:
        raise AttributeError(name)
    globals()[name] = made = _LATE[name]()
    return made
