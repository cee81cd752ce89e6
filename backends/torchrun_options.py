"""torchrun's own options, read as its argparse reads them: which are given, and where the script begins.

Read from PyTorch 2.13 (torch/distributed/run.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.command import Command
from backends.errors import ConfigError, Fault

# Each long option has a twin with underscores (--rdzv_id); argparse accepts every prefix that names one option only.
VALUES = (
    "nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "rdzv-conf", "max-restarts",
    "monitor-interval", "start-method", "event-log-handler", "role", "log-dir", "redirects", "tee",
    "local-ranks-filter", "duplicate-stdout-filters", "duplicate-stderr-filters", "node-rank", "master-addr",
    "master-port", "local-addr", "logs-specs", "numa-binding", "signals-to-handle", "shutdown-timeout",
)  # fmt: skip
SWITCHES = ("standalone", "module", "no-python", "run-path", "virtual-local-rank", "help")
LEGACY_SWITCHES = ("use-env",)  # of torch.distributed.launch alone
LETTERS = {"-m": "module", "-r": "redirects", "-t": "tee", "-h": "help"}
# What a pod's role decides. rdzv-conf may say who hosts the store.
PLACE = (
    "nnodes", "node-rank", "master-addr", "master-port", "rdzv-endpoint", "rdzv-conf", "local-addr",
)  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What torchrun itself reads of an argument list: option -> value ("" for a switch), up to the script.

    unknown is the first option that this table does not have: whether a value follows it cannot be told, so nothing
    behind it was read. places has each option again, with the tokens that it takes.
    """

    values: Mapping[str, str]
    unknown: str | None = None
    places: tuple[tuple[str, range], ...] = ()

    def without(self, arguments: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
        """The arguments that were read, less these options."""
        gone = {at for name, places in self.places if name in names for at in places}
        return tuple(token for at, token in enumerate(arguments) if at not in gone)


def read_command(command: Command) -> Given:
    """The options of a command that starts torchrun. Raises ConfigError as read_options does."""
    return read_options(command.arguments, legacy=command.argv[command.args - 1] == "torch.distributed.launch")


def read_options(arguments: Sequence[str], legacy: bool = False) -> Given:
    """As torchrun's argparse reads them. Raises ConfigError for a missing value or an ambiguous prefix."""
    names = (*VALUES, *SWITCHES, *(LEGACY_SWITCHES if legacy else ()))
    values: dict[str, str] = {}
    places: list[tuple[str, range]] = []
    at = 0
    while at < len(arguments):
        first, token = at, arguments[at]
        text, equals, value = token.partition("=")
        if token == "--" or not _is_option(token):
            break
        name = _name(text, names)
        if name is None and token[:2] in LETTERS and token[:2] != token:
            name, equals, value = LETTERS[token[:2]], "=", token[2:].removeprefix("=")  # -t3
        if name is None:
            return Given(values, token, tuple(places))
        at += 1
        if name in VALUES:
            if not equals:
                if at == len(arguments) or _is_option(arguments[at]):
                    raise ConfigError(Fault(f"{text} has no value", f"--{name} VALUE before the script"))
                value = arguments[at]
                at += 1
            values[name] = value
        else:
            values[name] = ""
        places.append((name, range(first, at)))
    return Given(values, None, tuple(places))


def _is_option(token: str) -> bool:
    # argparse takes negative numbers and "-" for words, as no option looks like a number.
    return token[:1] == "-" and len(token) > 1 and not token[1:].replace(".", "", 1).isdigit()


def _name(text: str, names: Sequence[str]) -> str | None:
    """The option that a token names, in full or by prefix; None for none."""
    if text in LETTERS:
        return LETTERS[text]
    if not text.startswith("--"):
        return None
    wanted = text[2:]
    spellings = {spelling: name for name in names for spelling in (name, name.replace("-", "_"))}
    if wanted in spellings:
        return spellings[wanted]
    meant = dict.fromkeys(name for spelling, name in spellings.items() if spelling.startswith(wanted))
    if len(meant) > 1:
        raise ConfigError(Fault(f"{text} is ambiguous", " or ".join(f"--{name}" for name in meant)))
    return next(iter(meant), None)
