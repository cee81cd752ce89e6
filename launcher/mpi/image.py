"""What an image has for MPI, asked before anything is launched: programs and their versions, and who we are in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
from collections.abc import Mapping
from pathlib import Path

from backends.errors import ConfigError, Fault
from backends.plan_mpi import MpiTools
from launcher.mpi import private
from launcher.settings import Settings
from launcher.supervisor import CannotStart, Supervisor

# Beside PATH: HPC-X and Open MPI in NVIDIA's images, whose entry point may not have run.
MPI_HOMES = ("/opt/hpcx/ompi5/bin", "/opt/hpcx/ompi/bin", "/usr/local/mpi/bin")
SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")  # where Debian has sshd
BESIDES = {"mpirun": MPI_HOMES, "sshd": SBIN}
ASKING = 60.0  # seconds
LIBRARIES = ("/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib", "/usr/local/lib64")
SSHD_NEEDS = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SYS_CHROOT": 18}  # of root: linux/capability.h


async def look(settings: Settings, supervisor: Supervisor) -> MpiTools:
    """This image's tools. Raises ConfigError where there is no room for secrets, and with --exec."""
    if settings.exec:
        raise ConfigError(
            Fault(
                "--exec with MPI: mpirun needs somebody who ends what it leaves behind, and the workers their agent",
                "no --exec",
                "leave --exec out",
            )
        )
    mpirun = find("mpirun", settings.environ)
    version, other = await _version(mpirun, settings.environ, supervisor)
    user = _user()
    home = user.pw_dir if user else None
    directory, trusted, beside = private.choose(home)
    return MpiTools(
        directory=directory,
        mpirun=mpirun,
        version=version,
        other=other,
        daemon=_daemon(mpirun),
        ssh=find("ssh", settings.environ),
        sshd=find("sshd", settings.environ),
        llmapi_launch=find("trtllm-llmapi-launch", settings.environ),
        nss_wrapper=_nss_wrapper(),
        uid=os.geteuid(),
        user=user.pw_name if user else None,
        home=home,
        shell=user.pw_shell if user else None,
        locked=_locked(user.pw_name) if user else False,
        lacks=_lacks() if os.geteuid() == 0 else (),
        trusted=trusted,
        beside=beside,
    )


def find(program: str, environ: Mapping[str, str]) -> str | None:
    """Its absolute path in this image, or None."""
    path = os.pathsep.join((environ.get("PATH", os.defpath), *BESIDES.get(program, ())))
    found = shutil.which(program, path=path)
    return os.path.abspath(found) if found else None


async def _version(mpirun: str | None, environ: Mapping[str, str], supervisor: Supervisor) -> tuple[str | None, str]:
    """Open MPI's version, or else what it is. The first line is `mpirun (Open MPI) X.Y.Z`."""
    if mpirun is None:
        return None, ""
    try:
        async with asyncio.timeout(ASKING):
            _, output = await supervisor.run("mpirun-version", (mpirun, "--version"), environ)
    except (CannotStart, TimeoutError) as error:
        return None, str(error) or f"silent for {ASKING:g} s"
    line = next(iter(output.decode(errors="replace").splitlines()), "")
    words = line.split()
    if "(Open" in words and words[-1][:1].isdigit():
        return words[-1], ""
    return None, line[:80]


def _daemon(mpirun: str | None) -> str | None:
    places = [Path(mpirun).with_name(name) for name in ("prted", "orted")] if mpirun else []
    return next((str(path) for path in places if path.exists()), None)


def _user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(os.geteuid())
    except KeyError:
        return None


def _locked(name: str) -> bool:
    """Whether sshd takes no login for it, as far as it can read /etc/shadow itself; without PAM, "!" means that."""
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{name}:!") for line in lines)


def _lacks() -> tuple[str, ...]:
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return ()
    lacks = [name for name, bit in SSHD_NEEDS.items() if not effective >> bit & 1]
    with contextlib.suppress(OSError):
        if Path("/proc/self/setgroups").read_text().strip() == "deny":  # user_namespaces(7)
            lacks.append("setgroups (denied in this user namespace)")
    return tuple(lacks)


def _nss_wrapper() -> str | None:
    for pattern in LIBRARIES:
        for name in ("libnss_wrapper.so", "libnss_wrapper.so.0"):
            found = sorted(Path("/").glob(f"{pattern[1:]}/{name}"))
            if found:
                return str(found[0])
    return None
