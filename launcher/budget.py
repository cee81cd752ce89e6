"""How the time that stopping may take is shared out, and what of the user's wishes does not fit into it."""

from __future__ import annotations

from dataclasses import dataclass

DRAIN_TIMEOUT = 25.0  # seconds; Kubernetes' default grace of 30, less the margin
MARGIN = 5.0  # seconds between our end and the kubelet's SIGKILL: a process stuck in a driver, a slow reader of logs
RESERVE = 3.0  # seconds kept for services and stragglers
TEARDOWN = 2.0  # seconds that an engine takes to end once its last request is answered


@dataclass(frozen=True)
class Budget:
    """Times in seconds. total = delay + engine + reserve; cuts says what did not fit, one line each.

    delay lets endpoints catch up before the engine is asked; engine is what it then has to drain and end;
    answering is the part of it in which requests may still be answered, in whole seconds.
    """

    total: float = DRAIN_TIMEOUT
    delay: float = 0.0
    cuts: tuple[str, ...] = ()

    @property
    def reserve(self) -> float:
        return min(RESERVE, self.total / 5)

    @property
    def engine(self) -> float:
        return self.total - self.delay - self.reserve

    @property
    def answering(self) -> int:
        return max(int(self.engine - TEARDOWN), min(int(self.engine), 1))


def share_out(timeout: float | None, delay: float, grace: float | None) -> Budget:
    """From --drain-timeout, --drain-delay and the pod's terminationGracePeriodSeconds, None where not given."""
    cuts = []
    limit = None if grace is None else grace - min(MARGIN, grace / 6)
    total = timeout if timeout is not None else DRAIN_TIMEOUT if limit is None else limit
    if limit is not None and total > limit:
        cuts.append(
            f"--drain-timeout {total:g} s is cut to {limit:g} s: terminationGracePeriodSeconds is {grace:g}, and then"
            " the kubelet kills"
        )
        total = limit
    longest = (total - Budget(total).reserve) / 2
    if delay > longest:
        cuts.append(f"--drain-delay {delay:g} s is cut to {longest:g} s: the engine needs the rest of the {total:g} s")
        delay = longest
    return Budget(total, delay, tuple(cuts))
