"""The phases of a pod's life: how long each lasted, and the one whose end only the engine can show, loading."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from backends.plan import Main
from launcher.gates import refuses
from launcher.log import log

if TYPE_CHECKING:
    from launcher.lifecycle import Pod
    from launcher.supervisor import Child

# All that a pod enters, in the order of a life; a later epoch begins with the second.
PHASES = (
    "starting", "restarting", "gathering", "formed", "smoke", "preparing", "prepared", "loading", "serving",
    "done", "draining", "stopping",
)  # fmt: skip
OF_MEMBERS = ("joined", "leaving", "failed")  # besides, what a leader says of its members
LOOK_EVERY = 0.5  # seconds
SHORTEST = 0.05  # seconds; what was shorter is not worth a line's room


def spent(began: Mapping[str, float], age: float) -> dict[str, float]:
    """Seconds in each phase, of the present one so far. began: when each did, in order; age: now, by the same clock."""
    ends = [*list(began.values())[1:], age]
    return {phase: round(max(end - at, 0), 3) for (phase, at), end in zip(began.items(), ends, strict=True)}


def summary(began: Mapping[str, float], age: float) -> str:
    """ "gathering 0.4 s, loading 56.7 s"."""
    return ", ".join(f"{phase} {took:.1f} s" for phase, took in spent(began, age).items() if took >= SHORTEST)


async def load(pod: Pod, main: Main, engine: Child) -> None:
    """See the engine through its loading: it serves from the moment at which it accepts connections.

    One that opens no port that is known here serves from its start: nobody can say more of it.
    """
    if main.serves is not None:
        begun, every = pod.age(), pod.settings.report_every
        report = begun + every
        while await refuses(main.serves) is not None and engine.alive:
            if pod.age() >= report and pod.phase == "loading":
                report += every
                what, port = main.serves.what, main.serves.port
                log.info(
                    "loading for %.0f s: %s does not accept connections on port %d yet", pod.age() - begun, what, port
                )
            await asyncio.sleep(LOOK_EVERY)
        if pod.phase != "loading" or not engine.alive:
            return
        times = summary(pod.phases, pod.age())
        log.info("loaded: %s accepts connections after %.1f s (%s)", main.serves.what, pod.age(), times)
        pod.enter("serving")
    if pod.health is not None:  # restarts are forgotten only after it has answered for a while
        await pod.health.first.wait()
    if pod.health is not None or main.serves is not None:
        engine.keepsake.forget()  # it serves in spite of it: SGLang logs each early look at itself
    pod.served_since = time.monotonic()
