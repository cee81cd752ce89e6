"""What a check found: frozen data, and what may follow from all of it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from backends.errors import ConfigError, Fault


class Status(enum.Enum):
    """skipped: there was nothing to look at, and found says why."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Result:
    """name is stable, for machines; found is what is there; remedy is what to do, never missing where it matters."""

    name: str
    status: Status
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.status in (Status.WARNING, Status.FAILED) and not self.remedy:
            raise ValueError(f"{self.name}: {self.status.value} without a remedy")

    def data(self) -> dict[str, str]:
        return {"name": self.name, "status": self.status.value, "found": self.found, "remedy": self.remedy}


def passed(name: str, found: str) -> Result:
    return Result(name, Status.PASSED, found)


def warning(name: str, found: str, remedy: str) -> Result:
    return Result(name, Status.WARNING, found, remedy)


def failed(name: str, found: str, remedy: str) -> Result:
    return Result(name, Status.FAILED, found, remedy)


def skipped(name: str, why: str) -> Result:
    return Result(name, Status.SKIPPED, why)


def of_error(name: str, error: ConfigError) -> list[Result]:
    """A failed line for each fault of a configuration that cannot work."""
    return [failed(name, fault.found, _remedy(fault)) for fault in error.faults]


def _remedy(fault: Fault) -> str:
    expected = f"expected: {fault.expected}" if fault.expected else ""
    return "; ".join(filter(None, (fault.remedy, expected))) or "change it"


def count(results: Iterable[Result], status: Status) -> int:
    return sum(result.status is status for result in results)


def exit_code(results: Iterable[Result], strict: bool) -> int:
    """0: nothing failed, with strict no warning either; else 1."""
    bad = (Status.FAILED, Status.WARNING) if strict else (Status.FAILED,)
    return int(any(result.status in bad for result in results))


def report(results: list[Result], strict: bool) -> dict[str, Any]:
    """As --format json shows it."""
    code = exit_code(results, strict)
    counts = {status.value: count(results, status) for status in Status}
    return {"ok": code == 0, **counts, "checks": [result.data() for result in results]}
