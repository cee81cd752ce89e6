"""As a NetworkPolicy that opens the group channel alone: from a worker pod no other TCP port of the leader answers.

Python imports this module at start-up when its directory is on PYTHONPATH. Packets are sent to a neighbour that nobody
is, so that the connection is not refused but hangs.
"""

import os
import sys


def block() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        eth0 = ip.link_lookup(ifname="eth0")[0]
        ip.neigh("add", dst="10.244.255.254", lladdr="02:00:00:00:00:01", ifindex=eth0, state="permanent")
        ip.route("add", dst="default", gateway="10.244.255.254", oif=eth0, table=100)
        ip.rule("add", table=100, priority=1, dst="10.244.0.10/32", ip_proto=6, dport_range="10000:65535")


if sys.orig_argv[1:4] == ["-m", "launcher", "start"] and os.environ["LWS_WORKER_INDEX"] == "2":
    block()
