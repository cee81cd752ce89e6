"""Open MPI 4.1 as Debian packages it, and 4.1 and 5 as PyPI does; groups of simulated pods that run it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import Simulate, Simulation

HERE = Path(__file__).parent
RANK = str(HERE / "mpi_rank.py")
BEGINNING = '{"rank": '
POD = str(HERE / "mpi_pod")
DEBIANS = Path("/usr/lib/x86_64-linux-gnu/libmpi.so.40")


@dataclass(frozen=True)
class OpenMpi:
    """An installation: its first place on PATH, the Python that has mpi4py, and what that must be told."""

    name: str
    path: str
    python: str
    environ: dict[str, str]

    def program(self, *arguments: str) -> list[str]:
        return [self.python, RANK, *arguments]


def installed(name: str) -> OpenMpi:
    """ "4" (Debian's), "4.1.8" or "5". What is absent is a failure: `make test-engines` builds it."""
    venv = Path(os.environ.get("LWSRUN_TEST_MPI5" if name == "5" else "LWSRUN_TEST_MPI4", ""))
    assert (venv / "bin" / "mpirun").exists(), "no Open MPI at $LWSRUN_TEST_MPI4 and 5: run `make test-engines`"
    if name == "4":
        assert Path("/usr/bin/mpirun").exists(), "no openmpi-bin: run `make mpi-packages`"
        return OpenMpi(name, "/usr/bin", str(venv / "bin" / "python"), {"MPI4PY_LIBMPI": str(DEBIANS)})
    return OpenMpi(name, str(venv / "bin"), str(venv / "bin" / "python"), {})


def run(
    simulate: Simulate, mpi: OpenMpi, *options: str, size: int = 3, slots: int = 2, pod: dict[str, Any] | None = None,
    command: list[str] | None = None, limit: float = 120, **environ: str,
) -> Simulation:  # fmt: skip
    """A group of simulated pods that runs a program over MPI. pod: how its pods differ (mpi_pod/sitecustomize.py)."""
    environ |= {"PATH": f"{mpi.path}:{os.environ['PATH']}", **mpi.environ}
    if pod is not None:
        environ |= {"PYTHONPATH": POD, "LWSRUN_TEST_POD": json.dumps(pod)}
    return simulate(
        f"--size={size}", f"--gpus-per-node={slots}", "--backend=mpi", *options,
        command=mpi.program() if command is None else command, limit=limit, **environ,
    )  # fmt: skip


def ranks(done: Simulation) -> list[dict[str, Any]]:
    """What each rank said, by rank: mpirun brings it all to the leader, sometimes two in one line."""
    text, told = "\n".join(done.said(0)), []
    at = text.find(BEGINNING)
    while at >= 0:
        said, end = json.JSONDecoder().raw_decode(text, at)
        told.append(said)
        at = text.find(BEGINNING, end)
    return sorted(told, key=lambda each: int(each["rank"]))
