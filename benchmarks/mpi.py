"""How long until all ranks run, from the moment at which all pods are up: lwsrun beside the MPI operator's way.

    make bench-mpi

Each round, in simulated pods of one slot: lwsrun over ssh and over the group channel, from the group having formed to
the last rank's first line; and the way of Kubeflow's MPI operator, written by ourselves: a key pair made before, sshd
in every worker, and on the launcher at once an mpirun whose ssh tries again by itself (ConnectionAttempts=10,
StrictHostKeyChecking=no), from the last pod's sshd or mpirun being started to the same line. Its sshds start late by
--late seconds, as pods do that pull their image last: ssh waits a second between two tries, lwsrun is told. Medians;
machines differ, so compare the columns.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

SIMULATE = [sys.executable, "-m", "launcher", "simulate", "--isolation=namespaces"]
# Not at once: Open MPI 5.0.11 may hang after jobs whose ranks end before the last has started.
RANK = "import time; print('rank-at', time.time(), flush=True); time.sleep(2)"
OPERATOR = """
set -e
mkdir -p /run/sshd
if [ {index} = 0 ]; then
    for i in $(seq 1 $(({size} - 1))); do
        while [ ! -s $SHARED/ip.$i ]; do sleep 0.02; done
        echo "$(cat $SHARED/ip.$i) slots=1"
    done > $SHARED/hosts.workers
    { echo "{pod_ip} slots=1"; cat $SHARED/hosts.workers; } > $SHARED/hosts
    echo up-at $(date +%s.%N)
    exec mpirun --allow-run-as-root --hostfile $SHARED/hosts -np {size} --map-by ppr:1:node --bind-to none \\
        --mca oob_tcp_if_include eth0 --mca btl_tcp_if_include eth0 --mca plm_rsh_agent "ssh -F /dev/null" \\
        --mca plm_rsh_args "-p 2222 -i $SHARED/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \\
-o LogLevel=ERROR -o ConnectionAttempts=10" $RANK_COMMAND
else
    echo {pod_ip} > $SHARED/ip.{index}
    sleep $LATE
    echo up-at $(date +%s.%N)
    exec $SSHD -D -e -f $SHARED/sshd_config
fi
"""
SSHD_CONFIG = """Port 2222
HostKey {0}/host
AuthorizedKeysFile {0}/key.pub
StrictModes no
UsePAM no
PidFile none
PermitRootLogin yes
"""


def simulated(options: list[str], command: list[str], environ: dict[str, str]) -> str:
    """All pods' output."""
    with tempfile.TemporaryDirectory() as logs:
        argv = [*SIMULATE, f"--keep-logs={logs}", "--gpus-per-node=1", *options, "--", *command]
        subprocess.run(argv, capture_output=True, check=False, env=environ, timeout=180)
        return "".join(path.read_text(errors="replace") for path in Path(logs).glob("*.log"))


def last_rank(text: str, size: int) -> float:
    at = [float(found) for found in re.findall(r"rank-at ([\d.]+)", text)]
    if len(at) != size:
        raise SystemExit(f"{len(at)} of {size} ranks ran:\n{text[-3000:]}")
    return max(at)


def with_lwsrun(agent: str, python: str, size: int, environ: dict[str, str]) -> float:
    options = [f"--size={size}", "--backend=mpi", f"--mpi-agent={agent}"]
    text = simulated(options, [python, "-c", RANK], environ)
    formed = re.search(r"\[lwsrun ([\d:.]+) leader\] group formed", text)
    assert formed is not None, text[-3000:]
    at = datetime.combine(datetime.now().date(), datetime.strptime(formed[1], "%H:%M:%S.%f").time())
    return last_rank(text, size) - at.timestamp()


def operators_way(python: str, size: int, late: float, environ: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as shared:
        for name in ("key", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{shared}/{name}"], check=True)
        (Path(shared) / "sshd_config").write_text(SSHD_CONFIG.format(shared))
        program = Path(shared) / "rank.py"
        program.write_text(RANK)
        more = {
            "SHARED": shared, "LATE": str(late), "SSHD": "/usr/sbin/sshd", "RANK_COMMAND": f"{python} {program}",
        }  # fmt: skip
        options = [f"--size={size}", "--backend=generic", "--kind=server", "--drain-timeout=2s"]
        text = simulated(options, ["bash", "-c", OPERATOR], environ | more)
        up = [float(found) for found in re.findall(r"up-at ([\d.]+)", text)]
        return last_rank(text, size) - max(up)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mpi", type=Path, required=True, help="An environment with Open MPI and Python.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=4)
    parser.add_argument("--late", type=float, default=0.7, help="Seconds that the operator's workers' sshd is late.")
    options = parser.parse_args()
    python = str(options.mpi / "bin" / "python")
    environ = {**os.environ, "PATH": f"{options.mpi / 'bin'}:{os.environ['PATH']}"}
    rows: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for agent in ("channel", "ssh"):
            rows.setdefault(f"lwsrun, --mpi-agent {agent}", []).append(
                with_lwsrun(agent, python, options.size, environ)
            )
        for late in (0.0, options.late):
            name = "the MPI operator's way" + (f", workers {late:g} s late" if late else ", workers ready")
            rows.setdefault(name, []).append(operators_way(python, options.size, late, environ))
    print(f"{options.size} pods, {options.rounds} rounds: all pods up until all ranks run, seconds")
    for name, values in rows.items():
        print(f"{name:45} {statistics.median(values):6.2f}  ({min(values):.2f} - {max(values):.2f})")


if __name__ == "__main__":
    main()
