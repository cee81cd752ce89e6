"""Comparing the versions that packages give themselves."""

from __future__ import annotations

from itertools import zip_longest

UNTAGGED = "0.1.dev"  # what setuptools-scm calls a build from a checkout without tags


def at_least(version: str | None, wanted: tuple[int, ...]) -> bool:
    """Whether a version such as "2.52.0" or "0.18rc1" has reached (major, minor, …). One that is not known has not."""
    parts = (version or "0").partition("+")[0].split(".")[: len(wanted)]
    numbers = (int(digits) if (digits := _leading_digits(part)) else 0 for part in parts)
    return tuple(number for number, _ in zip_longest(numbers, wanted, fillvalue=0)) >= wanted


def known_to_be_older(version: str | None, than: tuple[int, ...]) -> bool:
    """Whether a version certainly lacks what came with another one: nothing is refused on a guess."""
    return version is not None and not version.startswith(UNTAGGED) and not at_least(version, than)


def _leading_digits(text: str) -> str:
    return text[: next((at for at, letter in enumerate(text) if not letter.isdecimal()), len(text))]
