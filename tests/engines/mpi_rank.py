"""What every rank of the tests is: it adds up the ranks, then says as one JSON line what it sees.

Of the environment it says only a few names: mpirun cuts long lines, and mixes those of two ranks.
"""

import json
import os
import socket
import sys
from pathlib import Path

from mpi4py import MPI

SHOWN = (
    "ONLY_LEADER", "ONLY_WORKER", "BOTH", "NAMED", "GIVEN", "POD_NAME", "SECRET", "CUDA_VISIBLE_DEVICES", "HOSTNAME",
    "LWS_WORKER_INDEX", "WORLD_SIZE", "SLURM_PROCID", "PMI_RANK", "OMPI_MCA_btl_tcp_if_include",
)  # fmt: skip


def arguments_of_all() -> str:
    """The command lines of every process of this pod."""
    return " ".join(path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline"))


def listening() -> list[int]:
    """The TCP ports of this pod that others can reach: proc(5), /proc/net/tcp, whose 0A is TCP_LISTEN."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    places = [fields[1].split(":") for fields in sockets if fields[3] == "0A"]
    return sorted({int(port, 16) for address, port in places if not address.endswith("7F")})


world = MPI.COMM_WORLD
secret = os.environ.get("SECRET", "no secret")
told = {
    "rank": world.rank,
    "size": world.size,
    "sum": world.allreduce(world.rank),
    "host": socket.gethostname(),
    "uid": os.getuid(),
    "library": MPI.Get_library_version().split(",")[0],
    "arguments": sys.argv[1:],
    "environment": {name: os.environ[name] for name in SHOWN if name in os.environ},
    "secret_in_an_argv": secret in arguments_of_all(),
    "listening": listening(),
    "stdin": sys.stdin.read(),
}
print(json.dumps(told), flush=True)
