"""Checks of the image: the engine and Ray beside its Python, and the programs that MPI needs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from launcher import facts
from launcher.check.result import Result, failed, passed, skipped, warning
from launcher.check.scene import Scene, last_words
from launcher.supervisor import CannotStart, locate

PROGRAM = 10.0  # seconds for `--version`
# backend -> the distribution that must be there, and how people get it.
PACKAGES = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "tensorrt_llm", "torchrun": "torch"}
MPI = ("mpirun", "mpiexec", "orterun")
# Where Debian has sshd; not on the PATH of users other than root.
SYSTEM = "/usr/sbin:/usr/local/sbin:/sbin"
# launcher/mpi/image.py asks the same of the image when a group starts; the two should become one.
NEEDED_BY_MPI = (("mpirun", ("--version",)), ("ssh", ("-V",)), ("sshd", ("-V",)))


async def engine(scene: Scene) -> list[Result]:
    """Engine and version in the Python that would run it."""
    python = scene.node.python if scene.node is not None else "python3"
    try:
        versions = await facts.ask_versions(scene.supervisor, python, scene.environ, tuple(PACKAGES.values()))
    except CannotStart as error:
        remedy = "install Python in the image, or start the engine by a script that names its interpreter"
        return [(failed if scene.backend in PACKAGES else warning)("engine", str(error), remedy)]
    except TimeoutError:
        return [
            failed("engine", f"{python} has not answered in time", "look at the image's disk and its site-packages")
        ]
    there = [f"{name} {version}" for name in PACKAGES.values() if (version := versions.get(name))]
    where = f"in {python}, Python {versions.get('python') or '?'}"
    needed = PACKAGES.get(scene.command.engine if scene.command is not None else "")
    if not scene.settings.argv:
        if there:
            return [passed("engine", f"{', '.join(there)} {where}")]
        return [warning("engine", f"no engine {where}", "give COMMAND: its own interpreter may be another")]
    if needed is None:
        why = (
            "the command is not understood: see the plan"
            if scene.command is None
            else "no engine is known in the command"
        )
        return [skipped("engine", why)]
    if versions.get(needed) is None:
        remedy = f"install {needed} for {python}, or start it with the interpreter that has it"
        return [failed("engine", f"no {needed} {where}", remedy)]
    return [passed("engine", f"{', '.join(there)} {where}")]


def ray(scene: Scene) -> Iterator[Result]:
    """Where the plan has a Ray cluster in it."""
    if scene.node is None:
        yield skipped("ray", scene.node_error)
        return
    version = scene.node.ray
    if scene.plan is None:
        here = f"Ray {version} is here" if version else "no Ray is here"
        yield skipped("ray", f"without a plan nobody knows whether it is needed; {here}")
    elif not any(service.name.startswith("ray-") for service in scene.plan.services):
        yield skipped("ray", "the plan needs none")
    elif version is None:
        yield failed("ray", f"no Ray beside {scene.node.python}", "add `pip install ray` to the image")
    else:
        yield passed("ray", f"Ray {version} beside {scene.node.python}")


async def mpi(scene: Scene) -> list[Result]:
    """What a group of MPI ranks is started by: mpirun and ssh on the leader, sshd on every other pod."""
    argv = scene.settings.argv
    named = any(os.path.basename(token) in MPI for token in argv[:1])
    trtllm = scene.command is not None and scene.command.engine == "tensorrt-llm" and scene.size > 1
    if not (named or trtllm or scene.backend == "mpi"):
        return [skipped("mpi", "the command needs none of mpirun, ssh, sshd")]
    return [await _program(scene, *needed) for needed in NEEDED_BY_MPI]


async def _program(scene: Scene, name: str, version: tuple[str, ...]) -> Result:
    path = scene.environ.get("PATH", os.defpath)
    try:
        found = locate(name, {"PATH": f"{path}:{SYSTEM}"})
    except CannotStart as error:
        package = {"mpirun": "Open MPI", "ssh": "openssh-client", "sshd": "openssh-server"}[name]
        return failed("mpi", str(error).split(";")[0], f"install {package} in the image, of leader and workers")
    try:
        _, said = await scene.run((found, *version), PROGRAM)
    except (CannotStart, TimeoutError) as error:
        why = f"{found} does not tell its version: {str(error) or 'no answer in time'}"
        return failed("mpi", why, f"run `{found} {' '.join(version)}` in this image")
    # An older sshd does not know -V, and tells its version beside its usage.
    lines = [line.strip() for line in said.splitlines()]
    told = next(
        (line for line in lines if "OpenSSH" in line or "Open MPI" in line or "mpirun" in line), last_words(said)
    )
    return passed("mpi", f"{found}: {told}")
