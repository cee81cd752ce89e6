"""Waiting: for two things at once, and saying so every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

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


async def both(first: Coroutine[Any, Any, Any], second: Coroutine[Any, Any, Any]) -> tuple[Any, Any]:
    """Both results; the first failure cancels the other and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            one, two = tasks.create_task(first), tasks.create_task(second)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return one.result(), two.result()
