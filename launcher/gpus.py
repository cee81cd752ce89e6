"""How many GPUs the engine will see, by the variables that hide some and by what the driver's library shows.

CUDA_VISIBLE_DEVICES: https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html
NVIDIA_VISIBLE_DEVICES: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html
MIG: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/
HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES: https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEV = Path("/dev")
KFD = Path("/sys/class/kfd/kfd/topology/nodes")


@dataclass(frozen=True)
class Driver:
    """What NVML shows: one UUID for each device that CUDA can use, a MIG instance being one of its own.

    model: several are joined by "+". mig: at least one GPU is split.
    """

    uuids: tuple[str, ...]
    model: str | None = None
    version: str | None = None
    mig: bool = False


@dataclass(frozen=True)
class Gpus:
    """A count and how it is known; model and driver where NVML tells them."""

    count: int
    source: str
    model: str | None = None
    driver: str | None = None


def look_at_gpus(
    environ: Mapping[str, str],
    said: int | None,
    driver: Driver | None,
    dev: Path = DEV,
    kfd: Path = KFD,
) -> Gpus:
    """said is --gpus-per-node; driver is None where NVML cannot be used. dev and kfd stand for /dev and the sysfs."""
    count, source = said, "--gpus-per-node"
    if count is None:
        count, source = _nvidia(environ, driver, dev)
    if count == 0 and said is None and (devices := _amd_devices(dev, kfd)):
        count, source = _amd(environ, devices)
    return Gpus(count, source, driver.model if driver else None, driver.version if driver else None)


def _nvidia(environ: Mapping[str, str], driver: Driver | None, dev: Path) -> tuple[int, str]:
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return _count(visible, _known_to(driver)), "CUDA_VISIBLE_DEVICES"
    if driver is not None:
        return len(driver.uuids), "NVML, MIG instances" if driver.mig else "NVML"
    return _handed_in(environ, dev)


def _known_to(driver: Driver | None) -> Callable[[str], bool]:
    """Whether a name of CUDA_VISIBLE_DEVICES is a device. Without NVML nobody can say, so any that looks like one is.

    With MIG an index counts GPUs, not their instances, and an instance has three spellings: only the form is judged.
    """

    def known(name: str) -> bool:
        if name.isdecimal():
            return driver is None or driver.mig or int(name) < len(driver.uuids)
        if name.startswith("GPU-") and driver is not None and not driver.mig:
            return any(uuid.startswith(name) for uuid in driver.uuids)  # CUDA takes a prefix
        return name.startswith(("GPU-", "MIG-"))

    return known


def _count(names: str, known: Callable[[str], bool]) -> int:
    """CUDA stops at the first name that is no device: -1, NoDevFiles and an empty text hide what follows."""
    count = 0
    for name in names.split(","):
        if not known(name.strip()):
            break
        count += 1
    return count


def _handed_in(environ: Mapping[str, str], dev: Path) -> tuple[int, str]:
    """What the container runtime was asked for; its image's default is `all`, with or without a GPU.

    NVML is missing where NVIDIA_DRIVER_CAPABILITIES lacks `utility`.
    """
    asked = environ.get("NVIDIA_VISIBLE_DEVICES", "").strip()
    # A path: the device plugin hands devices in as volume mounts.
    if asked in ("", "none", "void") or asked.startswith("/"):
        return 0, "NVML finds none"
    if asked == "all":
        nodes = [path for path in dev.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()]
        return len(nodes), f"{dev}/nvidia*" if nodes else "NVML finds none"
    return len([name for name in asked.split(",") if name.strip()]), "NVIDIA_VISIBLE_DEVICES"


def _amd_devices(dev: Path, kfd: Path) -> int:
    """The GPUs among the nodes of AMD's compute driver: those with SIMDs, which a CPU has none of."""
    if not (dev / "kfd").exists():
        return 0
    count = 0
    for properties in kfd.glob("*/properties"):
        with contextlib.suppress(
            OSError, ValueError
        ):  # EPERM for a GPU that the container's device cgroup does not allow
            words = dict(line.split(maxsplit=1) for line in properties.read_text().splitlines() if " " in line)
            count += int(words.get("simd_count", "0")) > 0
    return count


def _amd(environ: Mapping[str, str], devices: int) -> tuple[int, str]:
    """HIP chooses among those that ROCR leaves: https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html"""
    source = "the AMD driver"
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        if name in environ and not (name.startswith("CUDA") and source.startswith("HIP")):
            count = _count(environ[name], lambda one: one.isdecimal() or one.startswith("GPU-"))
            devices, source = min(devices, count), name
    return devices, source


def ask_nvml() -> Driver | None:
    """None where NVML cannot be used: no library, no driver, no permission."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # whatever the reason, NVML shows no GPU
        return None
    try:
        return shown_by(pynvml)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def shown_by(nvml: Any) -> Driver:
    """What NVML's module answers, once it is initialised. Raises its NVMLError."""
    uuids: list[str] = []
    models: list[str] = []
    version, mig = None, False
    with contextlib.suppress(nvml.NVMLError):
        version = str(nvml.nvmlSystemGetDriverVersion())
    for at in range(int(nvml.nvmlDeviceGetCount())):
        try:
            gpu = nvml.nvmlDeviceGetHandleByIndex(at)
            models.append(str(nvml.nvmlDeviceGetName(gpu)))
            instances = _instances(nvml, gpu)
            uuids += [str(nvml.nvmlDeviceGetUUID(gpu))] if instances is None else instances
            mig = mig or instances is not None
        except nvml.NVMLError:
            uuids.append(f"device {at}")  # it has fallen off the bus, and still counts
    return Driver(tuple(uuids), " + ".join(dict.fromkeys(models)) or None, version, mig)


def _instances(nvml: Any, gpu: Any) -> list[str] | None:
    """The UUIDs of a GPU's MIG instances that this container is shown; None for a GPU that is not split."""
    try:
        if nvml.nvmlDeviceGetMigMode(gpu)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return None
        places = int(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu))
    except (nvml.NVMLError, AttributeError):  # a model, a driver, or an image's pynvml that knows no MIG
        return None
    found = []
    for at in range(places):
        with contextlib.suppress(nvml.NVMLError):  # an empty place, or one that is not this container's
            found.append(str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, at))))
    return found
