"""Faults in what the user gave us, told so that a person can mend them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: what was found, what was expected, and what to do next."""

    found: str
    expected: str = ""
    remedy: str = ""

    def lines(self) -> list[str]:
        """The fault as text: one line of finding, then the indented detail."""
        detail = [("expected", self.expected), ("to do", self.remedy)]
        return [self.found, *(f"  {label}: {text}" for label, text in detail if text)]


class ConfigError(Exception):
    """The configuration cannot work; carries every fault that was found, not only the first."""

    def __init__(self, *faults: Fault) -> None:
        if not faults:
            raise ValueError("a ConfigError needs at least one fault")
        self.faults = faults
        super().__init__(faults[0].found)

    def text(self) -> str:
        """All faults, the first line standing on its own."""
        lines = [line for fault in self.faults for line in fault.lines()]
        if len(self.faults) > 1:
            lines = [f"{len(self.faults)} faults: " + "; ".join(f.found for f in self.faults), *lines]
        return "\n".join(lines)
