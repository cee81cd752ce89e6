"""The command by which mpirun wants its daemon started on another pod, read without a shell.

mpirun writes it for a Bourne shell: NAME=value ; export NAME ; … /path/orted ARGUMENTS (plm_rsh_module.c of Open MPI
4.1, plm_ssh_module.c of PRRTE 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from launcher.mpi.gate import statements, unwrapped

VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?::-)?\}")
# Its first process would end at once and leave the daemon to nobody; ours is a child that is watched.
DAEMONIZE = "--daemonize"
# It never starts another daemon (plm_rsh_no_tree_spawn), but Open MPI 4 looks whether the leader's agent is there.
AGENTS = ("plm_rsh_agent", "plm_ssh_agent")


def read(command: str, environ: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The daemon's argv, and the environment for it over the given one. Raises gate.NoDaemon."""
    *before, argv = statements(unwrapped(command))
    made = dict(environ)
    for words in before:
        name, equals, value = words[0].partition("=")
        if equals:  # else it is exported, as all is here
            made[name] = VARIABLE.sub(lambda found: made.get(found[1] or found[2], ""), value)
    for at, word in enumerate(argv[:-1]):
        if word in AGENTS:
            argv[at + 1] = argv[0]
    return tuple(word for word in argv if word != DAEMONIZE), made
