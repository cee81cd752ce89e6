"""The `lwsrun smoke` command: `start` with a command of our own, so most of its options are those of `start`."""

from __future__ import annotations

from typing import Any

import click

from launcher.cli import live_as_pod, start
from launcher.options import PASS_THROUGH, make_smoke
from launcher.smoke.first import SCRIPT

# Options of `start` that say what its COMMAND is and how it is served; here they have one value.
FIXED: dict[str, Any] = {
    "backend": "smoke",
    "kind": None,
    "vllm_mode": "auto",
    "preset": None,
    "await_workers": None,
    "health_url": None,
    "hang_timeout": None,
    "mpi_agent": "ssh",
    "mpi_ranks": None,
    "mpi_env": (),
    "mpi_arg": (),
    "mpi_ports": None,
    "mpi_timeout": 300.0,
    "ssh_port": 2222,
    "ssh_keys": None,
    "exec": False,
    "max_restarts": 0,
    "restart_reset": 0.0,
    "drain_delay": 0.0,
}
OWN = [
    click.Option(["--python"], default="python3", show_default=True, show_envvar=True,
                 help="The Python that has PyTorch."),
    click.Option(["--format", "output"], type=click.Choice(["text", "json"]), default="text", show_default=True,
                 show_envvar=True, envvar="LWSRUN_FORMAT", help="How the leader writes the result to stdout."),
]  # fmt: skip
HELP = """Run real collectives over the whole group, one process for each GPU, and say whether it is fit.

Every node with every other, barrier, all-gather, and all-reduce by size: values are checked, latency and bandwidth
measured, and a node or a link that is bad is named. It needs the image's PyTorch. The same line in all pods.

\b
Exit codes:
  0    all is well
  70   on the leader: it is not; or lwsrun itself failed
  75   on the others: it is not
  78   the configuration cannot work, as where there is no PyTorch
  else as for `start`
"""


def run(python: str, output: str, **values: Any) -> None:
    live_as_pod((python, SCRIPT), make_smoke(values, format=output), {**values, **FIXED})


smoke = click.Command(
    "smoke",
    help=HELP,
    callback=run,
    params=[*OWN, *(p for p in start.params if p.name not in {"command", "smoke", *FIXED})],
    context_settings=PASS_THROUGH,
)
