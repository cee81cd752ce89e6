"""Who we are: the group's identity, as LWS (or a flag, or another controller, see orchestrator.py) tells it.

The three variables and their form: https://lws.sigs.k8s.io/docs/reference/labels-annotations-and-environment-variables/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from backends.errors import ConfigError, Fault
from backends.orchestrator import Choice, Given, choose

MAX_SIZE = 1024  # tried; every member is told the nodes of all, so the traffic grows with the square
MAX_NAME = 253  # RFC 1035, the longest name that DNS carries
MAX_LABEL = 63


@dataclass(frozen=True)
class Group:
    """A validated place in a group: 0 <= index < size, index 0 leads, size counts the leader.

    told_by says where the place is from, doubts what else the environment says of it.
    """

    leader_address: str
    size: int
    index: int
    id: str
    told_by: str = field(default="", compare=False)
    doubts: tuple[str, ...] = field(default=(), compare=False)

    @property
    def is_leader(self) -> bool:
        return self.index == 0

    @property
    def me(self) -> str:
        return member_name(self.index)


def member_name(index: int) -> str:
    """How a member is called in every message: "the leader" or "worker 3"."""
    return "the leader" if index == 0 else f"worker {index}"


def member_names(indexes: Iterable[int]) -> str:
    """Several members in one line: "worker 1, worker 3"."""
    return ", ".join(map(member_name, indexes))


def parse_group(
    environ: Mapping[str, str],
    *,
    leader_address: str | None = None,
    size: str | None = None,
    index: str | None = None,
    group_id: str | None = None,
    orchestrator: str = "auto",
) -> Group:
    """Read and validate the identity; flags win over the environment.

    Raises ConfigError with every fault at once. With size 1 no address is needed, and index defaults to 0.
    """
    choice = choose({} if leader_address and size and index else environ, orchestrator)
    family = choice.family
    given_address = _given(leader_address, "--leader-address") or choice.triple.address
    given_size = _given(size, "--size") or choice.triple.size
    given_index = _given(index, "--index") or choice.triple.index
    if given_address is None and given_size is None and given_index is None:
        raise ConfigError(
            Fault(
                f"this is not a pod of a group: {family.address}, {family.size} and {family.index} are not set",
                "the three variables that LeaderWorkerSet injects (LWS 0.6 or newer), or the flags --leader-address,"
                " --size and --index"
                if orchestrator == "auto"
                else f"the variables of {family.controller}, because of --orchestrator {orchestrator}",
                "run it in an LWS pod; try it on one machine with `lwsrun simulate --size 2 -- COMMAND`;"
                " or pass `--size 1` for a group of one",
            )
        )
    faults: list[Fault] = []
    size_value = _whole_number(given_size, choice, "--size", 1, MAX_SIZE, faults)
    alone = size_value == 1
    if given_index is None and alone:
        given_index = Given("0", "default")
    # Without a valid size, only the lower bound of the index can be judged.
    highest = size_value - 1 if size_value is not None else MAX_SIZE
    index_value = _whole_number(given_index, choice, "--index", 0, highest, faults, of_size=size_value)
    if given_address is None and alone:
        given_address = Given("localhost", "default")
    address = _address(given_address, choice, faults)
    if group_id is not None and not group_id.strip():
        faults.append(Fault("--group-id is empty", "any non-empty text, the same in every pod of the group"))
    if faults or size_value is None or index_value is None or address is None:
        raise ConfigError(*faults)
    sources = dict.fromkeys(given.source for given in (given_address, given_size, given_index) if given is not None)
    return Group(address, size_value, index_value, group_id or address, _told_by(choice, list(sources)), choice.doubts)


def _given(flag: str | None, name: str) -> Given | None:
    return None if flag is None else Given(flag, name)


def _told_by(choice: Choice, sources: list[str]) -> str:
    """Whose word the place is and by which variables, flags beside them included; nothing where flags say it all."""
    named = [source for source in sources if source != "default"]
    by_flags = all(source.startswith("--") for source in named)
    return "" if by_flags else f"{choice.family.controller}: {', '.join(named)}"


def _missing(choice: Choice, flag: str) -> Fault:
    family = choice.family
    name = {"--leader-address": family.address, "--size": family.size, "--index": family.index}[flag]
    return Fault(
        f"{name} is not set",
        f"set in every container of the group ({family.controller})",
        f"pass {flag}, or {family.remedy}",
    )


def _whole_number(
    given: Given | None,
    choice: Choice,
    flag: str,
    lowest: int,
    highest: int,
    faults: list[Fault],
    of_size: int | None = None,
) -> int | None:
    if given is None:
        faults.append(_missing(choice, flag))
        return None
    text = given.value.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        faults.append(Fault(f"{given.source} is {given.value!r}", "a whole number in decimal", _unexpanded(text)))
        return None
    number = int(text)
    if lowest <= number <= highest:
        return number
    if of_size is not None:
        expected = f"0 to {highest}, because the group's size is {of_size} and counts the leader (index 0)"
        faults.append(Fault(f"{given.source} is {number}, outside the group", expected))
    else:
        faults.append(Fault(f"{given.source} is {number}", f"{lowest} to {highest} (the size counts the leader)"))
    return None


def _unexpanded(text: str) -> str:
    if "$" in text:
        return (
            "it looks like a variable that nobody expanded: Kubernetes expands $(NAME) only, and only when NAME is"
            " defined earlier in the container's env"
        )
    return ""


def _address(given: Given | None, choice: Choice, faults: list[Fault]) -> str | None:
    if given is None:
        faults.append(_missing(choice, "--leader-address"))
        return None
    text = given.value.strip()
    why = _why_no_address(text)
    if why is None:
        return text
    faults.append(
        Fault(
            f"{given.source} is {given.value!r}: {why}",
            "a host name such as my-lws-0.my-lws.default, or an IPv4 or IPv6 address, without a port",
            _unexpanded(text),
        )
    )
    return None


def _why_no_address(text: str) -> str | None:
    if not text:
        return "it is empty"
    try:
        ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        return None
    if len(text) > MAX_NAME:
        return f"{len(text)} characters are more than the {MAX_NAME} that DNS allows"
    if "://" in text:
        return "it is a URL"
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and host:
        return f"it has a port ({port})"
    for label in text.removesuffix(".").split("."):
        if not label:
            return "it has an empty label (two dots in a row, or a leading dot)"
        if len(label) > MAX_LABEL:
            return f"the label {label[:20]}… is longer than {MAX_LABEL} characters"
        plain = label.replace("-", "").replace("_", "")
        if not (plain.isascii() and plain.isalnum()) or label[0] == "-" or label[-1] == "-":
            return f"{label!r} is not a DNS label"
    if text.replace(".", "").isdigit():
        return "it is not a valid IPv4 address"
    return None
