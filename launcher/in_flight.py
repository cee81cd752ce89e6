"""How many requests an engine still has, asked on its own pages."""

from __future__ import annotations

from typing import NamedTuple

import aiohttp

from backends.plan import InFlight

TIMEOUT = 2.0  # seconds


class Requests(NamedTuple):
    """What the engine works on, and what its server counts; None where it is not told."""

    engine: int | None
    server: int | None


async def look(at: InFlight) -> Requests:
    """Ask both pages. Never raises: an engine that has not started, or has ended, tells nothing."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:
        engine = server = None
        try:
            # The certificate is for the engine's clients; we ask over loopback.
            async with session.get(at.metrics, ssl=False) as answer:
                samples = [line for line in (await answer.text()).splitlines() if _name(line) in at.gauges]
                engine = int(sum(float(line.rsplit(" ", 1)[1]) for line in samples)) if samples else None
            if at.load is not None:
                async with session.get(at.load, ssl=False) as answer:
                    server = int((await answer.json())[at.load_key])
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, TypeError, KeyError):
            pass
    return Requests(engine, server)


def _name(line: str) -> str:
    """The metric of a sample line: https://prometheus.io/docs/instrumenting/exposition_formats/"""
    return line.partition(" ")[0].partition("{")[0]
