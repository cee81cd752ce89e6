"""What sshd runs for the leader's key, whatever was asked for: MPI's daemon, with what a rank of this pod starts from.

Usage, in authorized_keys: python -I -S gate.py DIRECTORY. It imports nothing of lwsrun's and little of Python's: it
stands between the leader and each daemon. sshd gives it none of the pod's environment; that lies in the directory.
"""

import json
import os
import shlex
import sys

REFUSED = 126  # as a shell says "found, but not executed"
HELLO = "lwsrun-hello"  # the leader's first login asks whether this gate is there
DAEMONS = ("orted", "prted")
# What mpirun puts before its daemon.
SETS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "OPAL_PREFIX", "OMPI_PREFIX", "PRTE_PREFIX", "PMIX_PREFIX")
OPERATORS = frozenset("();<>|&")

# Around it for a user whose shell is sh or ksh. The profile is left out: it is whatever lies in the working directory.
PROFILE = "( test ! -r ./.profile || . ./.profile;"


def unwrapped(command: str) -> str:
    """The command without what mpirun puts around it for some shells."""
    text = command.strip()
    return text[len(PROFILE) : -1] if text.startswith(PROFILE) and text.endswith(")") else command


class NoDaemon(ValueError):
    """It is not the command of an MPI daemon, or more than that; str() says in what."""


def statements(command: str) -> list[list[str]]:
    """The words of an MPI daemon's command, in mpirun's form; the last statement is the daemon's own argv.

    NAME=value ; export NAME ; … /path/orted ARGUMENTS, and no other operator or substitution. Raises NoDaemon.
    """
    if any(text in command for text in ("`", "$(", "\n", "\r", "\0")):
        raise NoDaemon("it has a substitution or several lines")
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "", True
    try:
        tokens = list(lexer)
    except ValueError as error:
        raise NoDaemon(str(error)) from None
    found: list[list[str]] = [[]]
    for token in tokens:
        if token == ";":
            found.append([])
        elif token and set(token) <= OPERATORS:
            raise NoDaemon(f"it has the operator {token}")
        else:
            found[-1].append(token)
    found = [words for words in found if words]
    if not found or os.path.basename(found[-1][0]) not in DAEMONS:
        raise NoDaemon("it does not start orted or prted")
    for words in found[:-1]:
        name = words[1] if words[0] == "export" and len(words) == 2 else words[0].partition("=")[0]
        if name not in SETS or (words[0] != "export" and (len(words) != 1 or "=" not in words[0])):
            raise NoDaemon(f"it has more than MPI's daemon: {' '.join(words)[:80]}")
    return found


def main() -> None:
    command = unwrapped(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    if command == HELLO:
        print(HELLO)
        return
    try:
        statements(command)
    except NoDaemon as error:
        print(f"lwsrun: refused: only MPI's daemon may be started here; {error}", file=sys.stderr)
        sys.exit(REFUSED)
    with open(os.path.join(sys.argv[1], "environment.json"), errors="surrogateescape") as file:
        environment = json.load(file)
    directory = environment.pop("", "/")  # no variable has this name
    os.chdir(directory)
    os.execve("/bin/sh", ["/bin/sh", "-c", command], environment)


if __name__ == "__main__":
    main()
