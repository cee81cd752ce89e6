"""Makes the pods of a simulation differ as templates, images and users do, before the launcher begins.

Python imports this module at start-up when its directory is on PYTHONPATH. LWSRUN_TEST_POD is JSON: "leader" and
"worker" are variables that only these have, "uid" is a user that the launcher becomes, "covered" a file of the image
that the workers do not have, "host" the beginning of a host name that resolves nowhere.
"""

import json
import os
import socket
import sys
from pathlib import Path

MS_BIND = 4096


def open_to_all(prefix: Path) -> None:
    """Let any user reach this Python, which may be installed in root's home: in this pod's own view of the files."""
    from launcher import kernel

    closed = next((str(each) for each in reversed(prefix.parents) if not each.stat().st_mode & 1), None)
    if closed is not None:
        found = os.open(prefix, os.O_PATH)
        kernel.mount("open", closed, "tmpfs", 0, "mode=755")
        prefix.mkdir(parents=True)
        kernel.mount(f"/proc/self/fd/{found}", str(prefix), flags=MS_BIND)


def become() -> None:
    given = json.loads(os.environ.pop("LWSRUN_TEST_POD"))
    from launcher import kernel

    leads = os.environ["LWS_WORKER_INDEX"] == "0"
    os.environ.update(given.get("leader" if leads else "worker", {}))
    if "host" in given:
        socket.sethostname(f"{given['host']}-{os.environ['LWS_WORKER_INDEX']}")
    if "covered" in given and not leads:
        kernel.mount("/dev/null", given["covered"], flags=MS_BIND)
    if "uid" in given:
        open_to_all(Path(sys.base_prefix))
        os.setgroups([])
        os.setgid(given["uid"])
        os.setuid(given["uid"])


if " -m launcher start" in " ".join(sys.orig_argv[:5]) and "LWSRUN_TEST_POD" in os.environ:
    become()
