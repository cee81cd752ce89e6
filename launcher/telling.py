"""What a plan means for the user, in the log: each line once, however often it is planned."""

from __future__ import annotations

import logging

from backends.plan import Plan
from backends.planner import GIVEN
from launcher.log import log


class Telling:
    """Of one epoch."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def choice(self, plan: Plan) -> None:
        self._once(logging.INFO, f"{plan.backend}, {plan.mode}: {plan.reason}")
        for note in plan.notes:
            self._once(logging.WARNING, note)

    def environment(self, plan: Plan) -> None:
        """What came by --env is the user's, and may be a secret."""
        for gone in plan.unset:
            self._once(logging.INFO, f"{gone.name} is not handed on: {gone.reason}")
        for variable in plan.env:
            if variable.reason != GIVEN:
                value = "<secret>" if variable.secret else variable.value
                self._once(logging.INFO, f"{variable.name}={value}: {variable.reason}")

    def decisions(self, plan: Plan) -> None:
        """Of the last plan only: ranks and the leader's address were assumed before."""
        for decision in plan.decisions:
            self._once(logging.INFO, decision)

    def _once(self, level: int, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            log.log(level, "%s", line)
