"""Comparing the versions that packages give themselves."""

from __future__ import annotations


def at_least(version: str | None, wanted: tuple[int, int]) -> bool:
    """Whether a version such as "2.52.0" or "0.18rc1" has reached (major, minor). One that is not known has not."""
    parts = (version or "0").split(".")
    numbers = tuple(int(digits) if (digits := _leading_digits(part)) else 0 for part in (*parts, "0")[:2])
    return numbers >= wanted


def _leading_digits(text: str) -> str:
    return text[: next((at for at, letter in enumerate(text) if not letter.isdecimal()), len(text))]
