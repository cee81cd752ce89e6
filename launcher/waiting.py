"""Whoever waits says so every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from launcher.log import log


@contextlib.asynccontextmanager
async def saying(every: float, for_what: Callable[[], str]) -> AsyncIterator[None]:
    """Log "waiting N s" and for what, every so many seconds, as long as the block lasts."""

    async def say() -> None:
        waited = 0.0
        while True:
            await asyncio.sleep(every)
            waited += every
            log.info("waiting %.0f s %s", waited, for_what())

    task = asyncio.create_task(say())
    try:
        yield
    finally:
        task.cancel()
