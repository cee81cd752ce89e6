"""`--mpi-agent channel`: mpirun's daemons are started over the group channel, with neither sshd nor keys.

mpirun runs agent.py for each worker. It asks the leader's launcher over a socket in the private directory: the host, a
NUL, the command, end; the answer is the daemon's exit code, and what went wrong after a blank. The leader's launcher
asks the worker's, which starts orted or prted as a child of its own and tells its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from backends.plan_mpi import AGENT_PYTHON, AGENT_SCRIPT, AGENT_SOCKET, ENVIRONMENT, Agent, Mpi
from launcher import exits
from launcher.channel.events import DaemonGone
from launcher.channel.messages import Launch, LaunchEnded
from launcher.channel.wire import Gone
from launcher.log import log
from launcher.mpi import daemon
from launcher.mpi.agent import FAILED
from launcher.mpi.gate import NoDaemon
from launcher.supervisor import CannotStart

if TYPE_CHECKING:
    from launcher.lifecycle import Pod

LONGEST = 256 * 1024  # bytes of a command
REFUSED, NOT_FOUND = 126, 127  # as a shell says "found, but not executed", and "not found"


class Launches:
    """The leader's side: agents that wait for the end of a daemon."""

    def __init__(self, pod: Pod, mpi: Mpi) -> None:
        self._pod = pod
        self._indexes = {host.ip: host.index for host in mpi.workers}
        self._numbers = itertools.count(1)  # mpirun may ask for the same pod twice
        self._waiting: dict[int, asyncio.Future[tuple[int, str]]] = {}
        self._server: asyncio.Server | None = None

    async def open(self, directory: str) -> None:
        """Answer agents from now on; what mpirun runs lies beside the socket."""
        where = Path(directory)
        # Links: a directory in memory may be mounted noexec, and mpirun splits the agent's command at blanks.
        (where / AGENT_PYTHON).symlink_to(sys.executable)
        (where / AGENT_SCRIPT).symlink_to(Path(__file__).with_name("agent.py"))
        self._server = await asyncio.start_unix_server(self._answer, where / AGENT_SOCKET)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            asked = b""
            while len(asked) <= LONGEST and (more := await reader.read(LONGEST)):
                asked += more
            code, words = (FAILED, "the command is too long") if len(asked) > LONGEST else await self._launch(asked)
            writer.write(f"{code} {words}".encode())
            writer.close()
            await writer.wait_closed()

    async def _launch(self, asked: bytes) -> tuple[int, str]:
        host, _, command = os.fsdecode(asked).partition("\0")
        leader, index = self._pod.leader, self._indexes.get(host)
        seat = leader.seats.get(index) if leader is not None and index is not None else None
        if index is None or seat is None:
            return FAILED, "no member of this group has this address" if index is None else "it has left the group"
        number = next(self._numbers)
        ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = ended
        try:
            await seat.wire.send(Launch(number, command))
        except Gone as error:
            return FAILED, str(error)
        return await ended

    def ended(self, message: LaunchEnded) -> None:
        ended = self._waiting.pop(message.number, None)
        if ended is not None and not ended.done():
            ended.set_result((message.code, message.words))


async def launch(pod: Pod, asked: Launch) -> None:
    """On a worker: start the daemon, tell its end. Its output goes to this pod's log."""
    code, words = await _run(pod, asked.command)
    if pod.member is not None:
        await pod.member.tell(LaunchEnded(asked.number, code, words))


async def _run(pod: Pod, command: str) -> tuple[int, str]:
    mpi = pod.plan.mpi if pod.plan else None
    if mpi is None or mpi.agent is not Agent.CHANNEL:
        return REFUSED, "no launch over the channel is planned here"
    try:
        argv, environ = daemon.read(command, _environment(mpi))
    except (NoDaemon, OSError, ValueError) as error:
        log.warning("refused to start what the leader's mpirun asks for: %s", error)
        return REFUSED, f"refused: only MPI's daemon may be started; {error}"
    name = os.path.basename(argv[0])
    log.info("starting %s for the leader's mpirun", name)
    try:
        child = pod.supervisor.spawn(name, argv, environ)
    except CannotStart as error:
        return NOT_FOUND, str(error)
    pod.children[name] = child
    code = await asyncio.shield(child.exited)
    pod.emit(DaemonGone(name, code, child.keepsake.text()))
    return code, "" if code == 0 else f"{name} {exits.describe(code)}"


def _environment(mpi: Mpi) -> Mapping[str, str]:
    """What a rank of this pod starts from; equip.py has written it down."""
    given: dict[str, str] = json.loads((Path(mpi.directory) / ENVIRONMENT).read_text(errors="surrogateescape"))
    given.pop("", None)
    return given
