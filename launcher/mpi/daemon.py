"""The command by which mpirun wants its daemon started on another pod, read without a shell.

mpirun writes it for a Bourne shell: NAME=value ; export NAME ; … /path/orted ARGUMENTS (plm_rsh_module.c of Open MPI
4.1, plm_ssh_module.c of PRRTE 3).
"""

from __future__ import annotations

import os.path
import re
import shlex
from collections.abc import Mapping

DAEMONS = ("orted", "prted")
# What mpirun sets for it, so that it finds its own files and libraries.
SETS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "OPAL_PREFIX", "OMPI_PREFIX", "PRTE_PREFIX", "PMIX_PREFIX")
OPERATORS = frozenset("();<>|&")
VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?::-)?\}")
# Its first process would end at once and leave the daemon to nobody; ours is a child that is watched.
DAEMONIZE = "--daemonize"
# It never starts another daemon (plm_rsh_no_tree_spawn), but Open MPI 4 looks whether the leader's agent is there.
AGENTS = ("plm_rsh_agent", "plm_ssh_agent")


class NoDaemon(ValueError):
    """It is not the command of an MPI daemon, or more than that; str() says in what."""


def read(command: str, environ: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The daemon's argv, and the environment for it over the given one. Raises NoDaemon."""
    if any(text in command for text in ("`", "$(", "\n", "\r", "\0")):
        raise NoDaemon("it has a substitution or several lines")
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "", True
    statements: list[list[str]] = [[]]
    try:
        for token in lexer:
            if token == ";":
                statements.append([])
            elif set(token) <= OPERATORS and token:
                raise NoDaemon(f"it has the operator {token}")
            else:
                statements[-1].append(token)
    except ValueError as error:
        raise NoDaemon(str(error)) from None
    *before, argv = [words for words in statements if words] or [[]]
    if not argv or os.path.basename(argv[0]) not in DAEMONS:
        raise NoDaemon("it does not start orted or prted")
    made = dict(environ)
    for words in before:
        _carry_out(words, made)
    for at, word in enumerate(argv[:-1]):
        if word in AGENTS:
            argv[at + 1] = argv[0]
    return tuple(word for word in argv if word != DAEMONIZE), made


def _carry_out(words: list[str], environ: dict[str, str]) -> None:
    name, equals, value = words[0].partition("=")
    if len(words) == 2 and words[0] == "export" and words[1] in SETS:
        return
    if len(words) != 1 or not equals or name not in SETS:
        raise NoDaemon(f"it has more than MPI's daemon: {' '.join(words)[:80]}")
    environ[name] = VARIABLE.sub(lambda found: environ.get(found[1] or found[2], ""), value)
