"""Makes the pods of a simulation differ as templates, images and users do, before the launcher begins.

Python imports this module at start-up when its directory is on PYTHONPATH. LWSRUN_TEST_POD is JSON: "leader" and
"worker" are variables that only these have, "uid" is a user that the launcher becomes, "host" another host name.
"""

import json
import os
import socket
import sys


def become() -> None:
    given = json.loads(os.environ.pop("LWSRUN_TEST_POD"))
    leads = os.environ["LWS_WORKER_INDEX"] == "0"
    os.environ.update(given.get("leader" if leads else "worker", {}))
    if "host" in given and not leads:
        socket.sethostname(given["host"])
    if "uid" in given:
        os.setgroups([])
        os.setgid(given["uid"])
        os.setuid(given["uid"])


if sys.orig_argv[1:4] == ["-m", "launcher", "start"] and "LWSRUN_TEST_POD" in os.environ:
    become()
