"""Checks of the image: the engine and Ray beside its Python, and the programs that MPI needs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from backends.plan_mpi import Agent
from backends.ssh import INSTEAD
from launcher import facts
from launcher.check.result import Result, failed, passed, skipped, warning
from launcher.check.scene import Scene, last_words
from launcher.mpi.image import find
from launcher.supervisor import CannotStart

PROGRAM = 10.0  # seconds for `--version`
# backend -> the distribution that must be there, and how people get it.
PACKAGES = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "tensorrt_llm", "torchrun": "torch"}
MPI = ("mpirun", "mpiexec", "orterun")
TELLS_VERSION = {"mpirun": "--version", "ssh": "-V", "sshd": "-V"}
LACKING = {
    "mpirun": "install Open MPI in the image, the same in all pods",
    "ssh": f"install openssh-client in the leader's image; or {INSTEAD}",
    "sshd": f"install openssh-server in the workers' image; or {INSTEAD}",
}


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
    """What a group of MPI ranks is started by: mpirun; and between pods ssh on the leader, sshd on every other one,
    unless lwsrun itself is the agent."""
    needed = _needed_by_mpi(scene)
    if not needed:
        return [skipped("mpi", "the command needs none of mpirun, ssh, sshd")]
    return [await _program(scene, name) for name in needed]


def _needed_by_mpi(scene: Scene) -> tuple[str, ...]:
    """Asked of the options, not of the plan: there is none where something of this is lacking."""
    if any(os.path.basename(token) in MPI for token in scene.settings.argv[:1]):
        return ("mpirun",)  # the user's own: how it reaches other pods is in its options
    planned = scene.plan is None or scene.plan.mpi is not None
    if not planned or not (scene.backend == "mpi" or (scene.backend == "tensorrt-llm" and scene.size > 1)):
        return ()
    if scene.size == 1 or scene.settings.options.mpi.agent is not Agent.SSH:
        return ("mpirun",)
    if not scene.given:  # an image, that of leader and workers as far as anybody knows
        return ("mpirun", "ssh", "sshd")
    return ("mpirun", "ssh" if scene.leads else "sshd")


async def _program(scene: Scene, name: str) -> Result:
    found = find(name, scene.environ)
    if found is None:
        return failed("mpi", f"this image has no {name}", LACKING[name])
    try:
        _, said = await scene.run((found, TELLS_VERSION[name]), PROGRAM)
    except (CannotStart, TimeoutError) as error:
        why = f"{found} does not tell its version: {str(error) or 'no answer in time'}"
        return failed("mpi", why, f"run `{found} {TELLS_VERSION[name]}` in this image")
    # An older sshd does not know -V, and tells its version beside its usage.
    lines = [line.strip() for line in said.splitlines()]
    told = next(
        (line for line in lines if "OpenSSH" in line or "Open MPI" in line or "mpirun" in line), last_words(said)
    )
    return passed("mpi", f"{found}: {told}")
