"""Checks of the command: its program, its plan, the layout on this group's GPUs, and the engine's own parser."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

from backends.command import detect
from backends.fabric import shared_memory_note
from backends.layout import LayoutError
from launcher.check.result import Result, failed, of_error, passed, skipped, warning
from launcher.check.scene import Scene, ended, last_words
from launcher.exits import describe
from launcher.supervisor import CannotStart, locate

PARSE = 180.0  # seconds: the import alone takes 10 to 60 on a cold disk
PARSERS = ("vllm", "sglang")
ANSWER = "lwsrun-parse: "


def program(scene: Scene) -> Iterator[Result]:
    """The file that would be executed."""
    if not scene.settings.argv:
        yield skipped("program", "no COMMAND is given: nothing of it is checked")
        return
    try:
        path = locate(scene.settings.argv[0], scene.environ)
    except CannotStart as error:
        yield failed("program", str(error), error.remedy)
    else:
        yield passed("program", path)


def plan(scene: Scene) -> Iterator[Result]:
    """Whether `start` could plan; what it would warn of."""
    if not scene.settings.argv:
        yield skipped("plan", "no COMMAND is given")
    elif isinstance(scene.plan_error, LayoutError):
        yield skipped("plan", "the layout does not fit: see there")
    elif scene.plan_error is not None:
        yield from of_error("plan", scene.plan_error)
    elif scene.plan is None:
        why = scene.node_error or "the group's identity is not valid"
        yield skipped("plan", why)
    else:
        yield passed("plan", f"{scene.plan.backend}, {scene.plan.mode}: {scene.plan.reason}")
        assert scene.request is not None
        known = shared_memory_note(scene.plan, scene.request)
        for note in scene.plan.notes:
            if note not in known:
                yield warning("plan", note, "see docs/ of the engine; `lwsrun plan` shows what would be run")


def layout(scene: Scene) -> Iterator[Result]:
    """Degrees against the group's GPUs, as every backend checks them."""
    error = scene.plan_error
    if isinstance(error, LayoutError):
        results = of_error("layout", error)
        if scene.assumed and scene.settings.size is None:
            size = "say --size N for a group of N such pods"
            yield from (warning(r.name, r.found, f"{size}; {r.remedy}") for r in results)
        else:
            yield from results
    elif scene.plan is None or scene.node is None:
        yield skipped("layout", "there is no plan")
    elif scene.plan.backend in ("generic", "ray", "torchrun"):
        yield skipped("layout", f"{scene.plan.backend}: the command's own matter")
    else:
        nodes = f"{scene.size} nodes" if scene.size > 1 else "one node"
        like = ", the others taken to be like this one" if scene.size > 1 else ""
        yield passed("layout", f"fits {nodes} × {scene.node.gpus} GPUs{like}")


async def parser(scene: Scene) -> list[Result]:
    """What the engine's own parser says of the command that would be run here."""
    argv = scene.plan.main.argv if scene.plan is not None and scene.plan.main is not None else scene.settings.argv
    if not argv:
        return [skipped("parser", "no COMMAND is given")]
    if scene.command is None:
        return [skipped("parser", "the command is not understood: see the plan")]
    engine = scene.command.engine
    if engine not in PARSERS or scene.command.is_dynamo:
        return [skipped("parser", f"no parser is known for {scene.command.entry if engine in PARSERS else engine}")]
    if scene.plan is not None and scene.plan.main is None:
        return [skipped("parser", "this pod runs no engine of its own: its part is a service's")]
    if not scene.parse:
        return [skipped("parser", f"not asked: with --parse {engine} itself reads the command (10 s and more)")]
    if scene.node is None:
        return [skipped("parser", scene.node_error)]
    source = resources.files("launcher.check").joinpath("parse_child.py").read_text()
    arguments = detect(argv).arguments
    try:
        code, said = await scene.run((scene.node.python, "-c", source, engine, *arguments), PARSE)
    except CannotStart as error:
        return [failed("parser", str(error), error.remedy)]
    except TimeoutError:
        remedy = "try it again with a warm disk, or leave --parse out"
        return [warning("parser", f"{engine} has not read the command within {PARSE:g} s", remedy)]
    answer = next((line.removeprefix(ANSWER) for line in said.splitlines() if line.startswith(ANSWER)), None)
    if answer == "accepted":
        return [passed("parser", f"{engine} {scene.node.engine_version or ''} reads the command".replace("  ", " "))]
    if answer is not None:
        return [failed("parser", f"{engine}: {answer.removeprefix('refused: ')}", "correct the command")]
    remedy = f"try `{scene.node.python} -c 'import {engine}'` in this image; leave --parse out to go without"
    if code:
        return [failed("parser", f"{engine}'s parser could not be asked: {ended(code, said)}", remedy)]
    return [failed("parser", f"{engine}'s parser {describe(code)} without an answer: {last_words(said)}", remedy)]
