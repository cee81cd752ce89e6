"""A directory for secrets: in memory, mode 0700, gone with the run; and one beside it for what sshd must trust.

sshd's StrictModes refuses authorized_keys below a directory that others can write to, as /dev/shm and /tmp are: it
looks at every parent, up to the home (auth_secure_path in OpenSSH's misc.c).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path

import psutil

from backends.errors import ConfigError, Fault

NAME = "lwsrun-mpi-"
ROOMS = ("/run", "/dev/shm")  # where memory is looked for
MEMORY = ("tmpfs", "ramfs")
OTHERS_WRITE = 0o022


def choose(home: str | None) -> tuple[str, bool, str | None]:
    """(directory, whether StrictModes trusts all its parents, a directory outside it that it trusts), not made yet.

    Raises ConfigError where nothing in memory can be written to.
    """
    name = NAME + secrets.token_hex(4)
    rooms = [room for room in ROOMS if _in_memory(room) and os.access(room, os.W_OK | os.X_OK)]
    if not rooms:
        raise ConfigError(
            Fault(
                "there is no directory in memory for the keys of this run: /dev/shm cannot be written to",
                "a tmpfs at /dev/shm or /run that this user can write to",
                "mount an emptyDir with `medium: Memory` at /dev/shm",
            )
        )
    room = next((room for room in rooms if trusted(room)), rooms[0])
    beside = next((f"{each}/{name}" for each in ("/run", home) if each and _may_hold(each)), None)
    return f"{room}/{name}", trusted(room), beside


def _may_hold(directory: str) -> bool:
    return os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK) and trusted(directory)


def trusted(directory: str) -> bool:
    """Whether nobody but root and us can write to it or to a parent of it."""
    path = Path(os.path.realpath(directory))
    for each in (path, *path.parents):
        try:
            found = each.stat()
        except OSError:
            return False
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & OTHERS_WRITE:
            return False
    return True


def _in_memory(directory: str) -> bool:
    path = os.path.realpath(directory)
    mounts = [each for each in psutil.disk_partitions(all=True) if _below(path, each.mountpoint)]
    # The last of the longest: a later mount covers an earlier one.
    return bool(mounts) and max(reversed(mounts), key=lambda each: len(each.mountpoint)).fstype in MEMORY


def _below(path: str, mountpoint: str) -> bool:
    return path == mountpoint or path.startswith(mountpoint.rstrip("/") + "/")


class Private:
    """The directory, from its making to its removal. It is locked as long as we live: what is not is a dead run's."""

    def __init__(self, *directories: str) -> None:
        """The first is the private one. Raises ConfigError."""
        self._held: list[tuple[Path, int]] = []
        for directory in directories:
            path = Path(directory)
            _remove_dead(path.parent)
            try:
                self._held.append((path, _make_locked(path)))
            except OSError as error:
                self.remove()
                raise ConfigError(
                    Fault(f"{path} cannot be made: {error.strerror}", "a directory that this user can write to")
                ) from None

    @property
    def path(self) -> Path:
        return self._held[0][0]

    def write(self, name: str, text: str, directory: str | None = None) -> Path:
        """A file that only this user can read, whole or not at all."""
        path = Path(directory or self.path) / name
        unfinished = path.with_name(f".{name}")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", errors="surrogateescape") as file:
            file.write(text)
        unfinished.rename(path)
        return path

    def remove(self) -> None:
        for path, descriptor in self._held:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)
        self._held.clear()


def _make_locked(path: Path) -> int:
    """Make it under another name, which nobody looks for, until it is locked: else a neighbour, as pods with one /run
    are, could take it for a dead run's in between. The descriptor that holds the lock."""
    unlocked = path.with_name(f".{path.name}")
    unlocked.mkdir(mode=0o700)
    descriptor = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    unlocked.rename(path)
    return descriptor


def _remove_dead(room: Path) -> None:
    """A launcher that was killed could not remove its directory; /dev/shm outlives the container."""
    for path in room.glob(f"{NAME}*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
