"""Reading and editing an argv list the way the engine's own argparse reads it. No shell, no regular expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.errors import ConfigError, Fault


@dataclass(frozen=True)
class Flag:
    """One option of an engine's parser.

    shortest is the shortest unambiguous prefix that argparse accepts for the long name; None where abbreviation
    is not known to be safe. aliases are matched exactly; also holds other long names with a shortest of their own.
    """

    name: str
    aliases: tuple[str, ...] = ()
    shortest: str | None = None
    takes_value: bool = True
    also: tuple[Flag, ...] = ()

    def matches(self, token: str) -> bool:
        """Whether this token (without its =value) selects this option."""
        name = token.split("=", 1)[0]
        if name in self.aliases or self.joined(token) or any(other.matches(token) for other in self.also):
            return True
        if not name.startswith("--"):
            return False
        # vLLM's parser reads underscores in option names as dashes, up to the first dot; SGLang's refuses them itself.
        head, dot, rest = name.partition(".")
        name = head.replace("_", "-") + dot + rest
        if name == self.name:
            return True
        return self.shortest is not None and len(name) >= len(self.shortest) and self.name.startswith(name)

    @property
    def negation(self) -> Flag:
        """The --no-… that argparse's BooleanOptionalAction gives a switch, with prefixes of the same length."""
        shortest = None if self.shortest is None else f"--no-{self.shortest[2:]}"
        return Flag(f"--no-{self.name[2:]}", shortest=shortest, takes_value=False)

    def joined(self, token: str) -> str | None:
        """The value in a token such as -n2, a one-letter option with its value joined to it."""
        for alias in self.aliases if self.takes_value else ():
            if len(alias) == 2 and token.startswith(alias) and token[2:].isdigit():
                return token[2:]
        return None


@dataclass(frozen=True)
class Found:
    """An occurrence: where it starts, how many tokens it spans, and its value (None for a switch)."""

    at: int
    width: int
    value: str | None
    text: str


def find(argv: Sequence[str], flag: Flag) -> list[Found]:
    """Every occurrence of the flag, in order; argparse's rule is that the last one wins.

    Raises ConfigError when a value is missing.
    """
    found: list[Found] = []
    for at, token in enumerate(argv):
        if token == "--":
            break
        if not token.startswith("-") or not flag.matches(token):
            continue
        name, equals, value = token.partition("=")
        if not flag.takes_value:
            found.append(Found(at, 1, None, name))
        elif equals:
            found.append(Found(at, 1, value, name))
        elif joined := flag.joined(token):
            found.append(Found(at, 1, joined, token[:2]))
        elif at + 1 < len(argv) and not _is_option(argv[at + 1]):
            found.append(Found(at, 2, argv[at + 1], name))
        else:
            raise ConfigError(Fault(f"{token} has no value", f"{flag.name} VALUE"))
    return found


def last(argv: Sequence[str], flag: Flag) -> Found | None:
    """The occurrence that counts, or None."""
    found = find(argv, flag)
    return found[-1] if found else None


def text(argv: Sequence[str], flag: Flag) -> str | None:
    """The value that counts, or None when the flag is absent."""
    found = last(argv, flag)
    return found.value if found else None


def switched(argv: Sequence[str], flag: Flag) -> bool | None:
    """Whether a switch is on, by the last of it and its --no-…; None where neither is given."""
    on, off = last(argv, flag), last(argv, flag.negation)
    if on is None and off is None:
        return None
    return (-1 if on is None else on.at) > (-1 if off is None else off.at)


def given(argv: Sequence[str], flag: Flag) -> bool:
    """Whether an option counts: it has a value, or it is a switch that is on in the end."""
    return bool(find(argv, flag)) if flag.takes_value else switched(argv, flag) is True


def whole_number(argv: Sequence[str], flag: Flag, default: int, lowest: int = 1) -> int:
    """The flag's value as an integer, or the engine's default. Raises ConfigError when it is not one."""
    found = last(argv, flag)
    if found is None:
        return default
    value = (found.value or "").strip()
    digits = value[1:] if value[:1] in ("-", "+") else value
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10) or int(value) < lowest:
        raise ConfigError(Fault(f"{found.text} is {found.value!r}", f"a whole number, {lowest} or more"))
    return int(value)


def add(argv: Sequence[str], flag: Flag, value: str | None = None) -> tuple[str, ...]:
    """argv with the flag set, placed after the user's own options and before a closing `--`."""
    addition = (flag.name,) if value is None else (flag.name, value)
    end = argv.index("--") if "--" in argv else len(argv)
    return (*argv[:end], *addition, *argv[end:])


def without(argv: Sequence[str], flags: Sequence[Flag]) -> tuple[str, ...]:
    """argv less every occurrence of the flags and their values. Raises ConfigError when a value is missing."""
    gone = {at for flag in flags for found in find(argv, flag) for at in range(found.at, found.at + found.width)}
    return tuple(token for at, token in enumerate(argv) if at not in gone)


def _is_option(token: str) -> bool:
    if not token.startswith("-") or token == "-":
        return False
    # argparse takes "-5" for a value as long as no option looks like a negative number.
    return not token[1:].replace(".", "", 1).isdigit()
