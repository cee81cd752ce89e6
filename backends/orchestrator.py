"""Who tells a pod its place in the group: the variables that each controller injects, read as one triple."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from backends.errors import ConfigError, Fault


@dataclass(frozen=True)
class Given:
    """A value and where it came from, so that a fault can name its source."""

    value: str
    source: str


@dataclass(frozen=True)
class Triple:
    """Leader address, size and index as given; None for what is not."""

    address: Given | None
    size: Given | None
    index: Given | None


@dataclass(frozen=True)
class Family:
    """One controller's variables.

    address, size and index are the names that a fault shows; marks are the variables of which one must be set for this
    controller to be the one; remedy is what to do about a missing variable.
    """

    key: str
    controller: str
    address: str
    size: str
    index: str
    marks: tuple[str, ...]
    read: Callable[[Mapping[str, str]], Triple]
    remedy: str


def _plain(address: str, size: str, index: str, environ: Mapping[str, str]) -> Triple:
    return Triple(_variable(address, environ), _variable(size, environ), _variable(index, environ))


def _variable(name: str, environ: Mapping[str, str]) -> Given | None:
    value = environ.get(name)
    return None if value is None else Given(value, name)


# A worker's PodClique and the leader's beside it in their PodCliqueScalingGroup. The Dynamo operator's names, and those
# of Grove's own documents.
GROVE_ROLES = (("wkr", "ldr"), ("worker", "leader"))


def _grove(environ: Mapping[str, str]) -> Triple:
    """Grove numbers the pods of each PodClique from 0: the leader has one of its own, so a worker's number is one more.

    https://github.com/ai-dynamo/grove/tree/main/docs/user-guide (environment variables). Outside a scaling group all
    pods are of one PodClique, whose pod 0 leads, and no variable tells how many there are.
    """
    clique = environ.get("GROVE_PCLQ_NAME", "")
    service = environ.get("GROVE_HEADLESS_SERVICE")
    number = _variable("GROVE_PCLQ_POD_INDEX", environ)
    size = _variable("GROVE_PCSG_TEMPLATE_NUM_PODS", environ)
    leader: str | None = clique or None
    if environ.get("GROVE_PCSG_NAME") is not None:
        leader = None
        for worker_role, leader_role in GROVE_ROLES:
            if _has_role(clique, leader_role):
                leader = clique
            elif _has_role(clique, worker_role):
                leader = clique.removesuffix(worker_role) + leader_role
                number = _plus_one(number)
        if leader is None:
            number = _variable("GROVE_PCSG_POD_INDEX", environ)
    address = (
        Given(f"{leader}-0.{service}", "GROVE_PCLQ_NAME and GROVE_HEADLESS_SERVICE") if leader and service else None
    )
    return Triple(address, size, number)


def _has_role(clique: str, role: str) -> bool:
    return clique.endswith(f"-{role}")


def _plus_one(number: Given | None) -> Given | None:
    if number is None or not (number.value.isascii() and number.value.isdigit()):
        return number
    return Given(str(int(number.value[:9]) + 1), f"{number.source} + 1")


def _aibrix(environ: Mapping[str, str]) -> Triple:
    """Pod 0 of the PodSet, under the StormService's headless Service of the same namespace."""
    podset, storm = environ.get("PODSET_NAME"), environ.get("STORM_SERVICE_NAME")
    address = None
    if podset is not None and storm is not None:
        address = Given(f"{podset}-0.{storm}", "PODSET_NAME and STORM_SERVICE_NAME")
    return Triple(address, _variable("POD_GROUP_SIZE", environ), _variable("POD_GROUP_INDEX", environ))


def _named(key: str, controller: str, address: str, size: str, index: str, remedy: str) -> Family:
    names = (address, size, index)
    return Family(key, controller, *names, marks=names, read=partial(_plain, *names), remedy=remedy)


_LWS = ("LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX")
_LWS_REMEDY = (
    "check that the pod carries the LWS labels (LWS below 0.6 lacks LWS_WORKER_INDEX: take it from the label"
    " leaderworkerset.sigs.k8s.io/worker-index by fieldRef)"
)
LWS = _named("lws", "LeaderWorkerSet", *_LWS, _LWS_REMEDY)
# KServe's LLMInferenceService makes a LeaderWorkerSet, so its pods have that one's variables.
KSERVE = _named("kserve", "KServe (its LeaderWorkerSet)", *_LWS, _LWS_REMEDY)
RBG = _named(
    "rbg", "RoleBasedGroup", "RBG_LWP_LEADER_ADDRESS", "RBG_LWP_GROUP_SIZE", "RBG_LWP_WORKER_INDEX",
    "check that the role has the leader-worker pattern",
)  # fmt: skip
GROVE = Family(
    "grove", "Grove", "the leader's name (GROVE_PCLQ_NAME, GROVE_HEADLESS_SERVICE)", "GROVE_PCSG_TEMPLATE_NUM_PODS",
    "GROVE_PCLQ_POD_INDEX", ("GROVE_PCLQ_NAME", "GROVE_PCLQ_POD_INDEX"), _grove,
    "put the pods into a PodCliqueScalingGroup of two PodCliques whose names end with -ldr and -wkr, or -leader and"
    " -worker",
)  # fmt: skip
AIBRIX = Family(
    "aibrix", "AIBrix", "the leader's name (PODSET_NAME, STORM_SERVICE_NAME)", "POD_GROUP_SIZE", "POD_GROUP_INDEX",
    ("PODSET_NAME", "POD_GROUP_INDEX"), _aibrix, "check that the role of the StormService has a podGroupSize",
)  # fmt: skip
TORCHRUN = _named(
    "torchrun", "torchrun's names", "MASTER_ADDR", "NNODES", "NODE_RANK", "set it in the pod template",
)  # fmt: skip
# In order: of those of which a variable is set, the first is read.
AUTO = (LWS, RBG, GROVE, AIBRIX, TORCHRUN)
FAMILIES = {family.key: family for family in (LWS, RBG, GROVE, AIBRIX, KSERVE, TORCHRUN)}
NAMES = ("auto", *FAMILIES)


@dataclass(frozen=True)
class Choice:
    """Whose variables are read, what they say, and what other families say differently, one line each."""

    family: Family
    triple: Triple
    doubts: tuple[str, ...] = ()


def choose(environ: Mapping[str, str], orchestrator: str = "auto") -> Choice:
    """The family that is read. Raises ConfigError where two controllers contradict each other and neither is LWS.

    A pod of an LWS has LWS's word, because its webhook lets nobody override it; torchrun's names are the user's own.
    """
    if orchestrator != "auto":
        family = FAMILIES[orchestrator]
        return Choice(family, family.read(environ))
    present = [family for family in AUTO if any(name in environ for name in family.marks)]
    if not present:
        return Choice(LWS, LWS.read(environ))
    chosen, *others = present
    triple = chosen.read(environ)
    doubts = []
    for other in others:
        says = _difference(triple, other.read(environ))
        if says is None:
            continue
        if chosen is not LWS and other is not TORCHRUN:
            raise ConfigError(
                Fault(
                    f"two controllers contradict each other: {chosen.controller} says {says[0]}, {other.controller}"
                    f" {says[1]}",
                    "variables of one controller, or the same place from both",
                    f"say which one counts: --orchestrator {chosen.key} or {other.key}",
                )
            )
        doubts.append(
            f"{chosen.controller} says {says[0]}, {other.controller} {says[1]}: the former counts"
            f" (--orchestrator {other.key} for the other)"
        )
    return Choice(chosen, triple, tuple(doubts))


def _difference(ours: Triple, theirs: Triple) -> tuple[str, str] | None:
    """Size and index where they differ. One leader has many names, so addresses are not compared."""
    pairs = [(what, getattr(ours, what), getattr(theirs, what)) for what in ("size", "index")]
    apart = [(w, a.value.strip(), b.value.strip()) for w, a, b in pairs if a is not None and b is not None]
    apart = [(what, mine, other) for what, mine, other in apart if mine != other]
    if not apart:
        return None
    return (
        ", ".join(f"{what} {mine}" for what, mine, _ in apart),
        ", ".join(f"{what} {other}" for what, _, other in apart),
    )
