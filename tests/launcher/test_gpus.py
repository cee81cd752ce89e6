"""How many GPUs the engine will see: by what hides some, and by what the driver shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.gpus import Driver, look_at_gpus, shown_by

EIGHT = Driver(tuple(f"GPU-{at}2345678-0000-0000-0000-000000000000" for at in range(8)), "NVIDIA H100", "580.1")
SPLIT = Driver(("MIG-a", "MIG-b", "MIG-c"), "NVIDIA A100", "580.1", mig=True)


def counted(tmp_path: Path, driver: Driver | None = None, said: int | None = None, **environ: str) -> tuple[int, str]:
    found = look_at_gpus(environ, said, driver, tmp_path / "dev", tmp_path / "kfd")
    return found.count, found.source


def test_nvml_counts_where_nothing_hides_a_gpu(tmp_path: Path) -> None:
    assert counted(tmp_path, EIGHT) == (8, "NVML")
    assert counted(tmp_path, SPLIT) == (3, "NVML, MIG instances")
    assert counted(tmp_path) == (0, "NVML finds none")


def test_model_and_driver_come_from_nvml_whatever_counts(tmp_path: Path) -> None:
    found = look_at_gpus({"CUDA_VISIBLE_DEVICES": "0"}, 4, EIGHT, tmp_path, tmp_path)
    assert (found.count, found.source, found.model, found.driver) == (4, "--gpus-per-node", "NVIDIA H100", "580.1")


# https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html
@pytest.mark.parametrize(
    ("visible", "count"),
    [
        ("0,1", 2),
        ("2, 1", 2),
        ("0,2,-1,1", 2),  # NVIDIA's own example
        ("-1", 0),
        ("", 0),
        ("NoDevFiles", 0),
        ("none", 0),
        ("0,,1", 1),
        ("0,8,1", 1),  # there is no device 8
        ("GPU-02345678-0000-0000-0000-000000000000,GPU-12345678", 2),  # the start of a UUID is enough
        ("GPU-02345678,GPU-ffffffff,GPU-12345678", 1),
        ("0,1,", 2),
    ],
)
def test_cuda_stops_at_the_first_name_that_is_no_device(tmp_path: Path, visible: str, count: int) -> None:
    assert counted(tmp_path, EIGHT, CUDA_VISIBLE_DEVICES=visible) == (count, "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("visible", "count"), [("0,1,2,3", 4), ("GPU-ffffffff", 1), ("-1", 0), ("", 0), ("MIG-1234", 1), ("nothing", 0)]
)
def test_without_nvml_a_name_that_looks_like_a_device_is_believed(tmp_path: Path, visible: str, count: int) -> None:
    assert counted(tmp_path, CUDA_VISIBLE_DEVICES=visible) == (count, "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("visible", ["MIG-c4c1a5a8-b2c3-5c6d-9c5d-0123456789ab", "MIG-GPU-8932f937-d72c/1/2"])
def test_a_mig_instance_is_named_in_either_spelling(tmp_path: Path, visible: str) -> None:
    assert counted(tmp_path, SPLIT, CUDA_VISIBLE_DEVICES=visible) == (1, "CUDA_VISIBLE_DEVICES")


# https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html
@pytest.mark.parametrize(
    ("handed_in", "found"),
    [
        ("GPU-aaaa,GPU-bbbb", (2, "NVIDIA_VISIBLE_DEVICES")),
        ("0,1,2,3", (4, "NVIDIA_VISIBLE_DEVICES")),
        ("none", (0, "NVML finds none")),
        ("void", (0, "NVML finds none")),
        ("", (0, "NVML finds none")),
        ("/var/run/nvidia-container-devices", (0, "NVML finds none")),
        ("all", (0, "NVML finds none")),  # the default of CUDA's images, on a machine without a GPU
    ],
)
def test_where_the_image_lacks_nvml_the_container_runtime_was_asked_for_so_many(
    tmp_path: Path, handed_in: str, found: tuple[int, str]
) -> None:
    assert counted(tmp_path, NVIDIA_VISIBLE_DEVICES=handed_in) == found


def test_all_means_the_device_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert counted(tmp_path, NVIDIA_VISIBLE_DEVICES="all") == (2, f"{tmp_path}/dev/nvidia*")


def test_nvml_knows_better_than_what_the_runtime_was_asked_for(tmp_path: Path) -> None:
    """A privileged container sees every GPU of its node."""
    assert counted(tmp_path, EIGHT, NVIDIA_VISIBLE_DEVICES="GPU-aaaa") == (8, "NVML")


# --- AMD ---


@pytest.fixture
def amd(tmp_path: Path) -> Path:
    """A node with one CPU and four GPUs, as the compute driver shows them."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kfd").touch()
    for at, simds in enumerate((0, 304, 304, 304, 304)):
        node = tmp_path / "kfd" / str(at)
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count {0 if simds else 96}\nsimd_count {simds}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, (4, "the AMD driver")),
        ({"HIP_VISIBLE_DEVICES": "0,2"}, (2, "HIP_VISIBLE_DEVICES")),
        ({"ROCR_VISIBLE_DEVICES": "0,GPU-DEADBEEFDEADBEEF"}, (2, "ROCR_VISIBLE_DEVICES")),
        ({"ROCR_VISIBLE_DEVICES": "0,1,2", "HIP_VISIBLE_DEVICES": "0"}, (1, "HIP_VISIBLE_DEVICES")),
        ({"HIP_VISIBLE_DEVICES": "-1"}, (0, "HIP_VISIBLE_DEVICES")),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, (3, "CUDA_VISIBLE_DEVICES")),
    ],
)
def test_amds_gpus_are_counted_by_their_own_driver_and_variables(
    amd: Path, environ: dict[str, str], found: tuple[int, str]
) -> None:
    assert counted(amd, **environ) == found


def test_a_pod_that_may_not_use_amds_driver_has_none_of_its_gpus(amd: Path) -> None:
    (amd / "dev" / "kfd").unlink()
    assert counted(amd) == (0, "NVML finds none")


# --- NVML ---


class Nvml:
    """NVML's answers for GPUs of which some are split; a library of NVIDIA's driver, which no test machine has."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, gpus: Sequence[list[str | None] | str]) -> None:
        """A GPU is "plain", "lost", "old" (no such thing as MIG), or a list of the instances at its places."""
        self.gpus = gpus

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, at: int) -> tuple[int, int | None]:
        if self.gpus[at] == "lost":
            raise self.NVMLError
        return at, None

    def nvmlDeviceGetName(self, gpu: tuple[int, int | None]) -> str:
        return "NVIDIA A100"

    def nvmlDeviceGetMigMode(self, gpu: tuple[int, int | None]) -> list[int]:
        if self.gpus[gpu[0]] == "old":
            raise self.NVMLError
        return [int(isinstance(self.gpus[gpu[0]], list))] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: tuple[int, int | None]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: tuple[int, int | None], at: int) -> tuple[int, int | None]:
        places = self.gpus[gpu[0]]
        if at >= len(places) or places[at] is None:
            raise self.NVMLError
        return gpu[0], at

    def nvmlDeviceGetUUID(self, device: tuple[int, int | None]) -> str:
        gpu, place = device
        return f"GPU-{gpu}" if place is None else f"MIG-{gpu}-{place}"


@pytest.mark.parametrize(
    ("gpus", "uuids", "mig"),
    [
        (["plain", "plain"], ("GPU-0", "GPU-1"), False),
        (["old"], ("GPU-0",), False),
        (["plain", "lost"], ("GPU-0", "device 1"), False),
        ([["a", "b", None, "c"]], ("MIG-0-0", "MIG-0-1", "MIG-0-3"), True),
        ([["a"], "plain"], ("MIG-0-0", "GPU-1"), True),
        ([[]], (), True),  # split, but no instance is this container's
        ([], (), False),
    ],
)
def test_a_split_gpu_counts_as_the_instances_that_are_shown(
    gpus: list[list[str | None] | str], uuids: tuple[str, ...], mig: bool
) -> None:
    shown = shown_by(Nvml(gpus))
    assert (shown.uuids, shown.mig) == (uuids, mig)
    assert shown.model == ("NVIDIA A100" if gpus and gpus != ["lost"] else None)
