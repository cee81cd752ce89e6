"""As a NetworkPolicy that leaves MPI out: from worker 2 no TCP port of the leader from 50000 on answers.

Python imports this module at start-up when its directory is on PYTHONPATH. Packets are sent to a neighbour that nobody
is, so that the connection is not refused but hangs.
"""

import os
import subprocess
import sys

COMMANDS = (
    "ip neigh add 10.244.255.254 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
    "ip route add default via 10.244.255.254 dev eth0 table 100",
    "ip rule add priority 1 to 10.244.0.10 ipproto tcp dport 50000-65534 lookup 100",
)


def block() -> None:
    environ = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    for command in COMMANDS:
        subprocess.run(command.split(), check=True, env=environ)


if " -m launcher start" in " ".join(sys.orig_argv[:5]) and os.environ["LWS_WORKER_INDEX"] == "2":
    block()
