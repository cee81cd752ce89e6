"""Asking an engine how it is: one request at a time, whoever else asks us, and what the last answer was."""

from __future__ import annotations

import asyncio
import os
import time
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from backends.plan import Health, Main, PortOpen
from launcher.gates import refuses
from launcher.log import log

if TYPE_CHECKING:
    import aiohttp

    from launcher.lifecycle import Pod

LATE = 5.0  # seconds without an answer, after which the engine counts as not ready; the request is left waiting
LIMIT = 60.0  # seconds after which it is given up and another takes its place
SOON = 1.0  # seconds between two requests to an engine that has not answered well
WATCHED = 5.0  # the same to one that has, while somebody asks us
IDLE = 30.0  # and while nobody does: each is a line in most engines' logs
NOT_KNOWN = (401, 403, 404, 405)


class EngineHealth:
    """An engine's health as it was told last. The engine has one request of ours at most, however slow it is."""

    def __init__(self, at: Health, every: float | None = None, quiet: bool = False) -> None:
        """every: seconds between two requests, whether somebody asks us or not. quiet: log nothing."""
        self.at = at
        self.url = at.url
        self.first = asyncio.Event()  # it has answered well
        self.well_at: float | None = None  # time.monotonic() of the last good answer
        self.failure: str | None = "not asked yet"  # of the last answer
        self._every = every
        self._quiet = quiet
        self._waiting_since: float | None = None
        self._wanted_at = self._told_at = float("-inf")
        self._wake = asyncio.Event()

    def wanted(self) -> None:
        """Somebody wants to know: ask anew, once a second at most."""
        self._wanted_at = time.monotonic()
        if self._wanted_at - self._told_at > SOON:
            self._wake.set()

    def why_not(self) -> str | None:
        """Why it does not serve, in one line; None when it does."""
        now = time.monotonic()
        waits = 0.0 if self._waiting_since is None else now - self._waiting_since
        if waits >= LATE:
            return f"{self.what}: no answer for {waits:.0f} s"
        return None if self.failure is None else f"{self.what}: {self.failure}"

    @property
    def fails(self) -> bool:
        """Whether the last answer was not good, or the next does not come."""
        return self.failure is not None or (
            self._waiting_since is not None and time.monotonic() - self._waiting_since > SOON
        )

    @property
    def what(self) -> str:
        return self.url if self.url.startswith("tcp:") else f"GET {self.url}"

    async def watch(self) -> None:
        """Ask for ever, and log when the answer changes from good to bad and back."""
        session = None
        if not self.url.startswith("tcp:"):
            # In a thread: it takes a while, in which others want an answer from this loop.
            aiohttp = await asyncio.to_thread(import_module, "aiohttp")
            # A kept connection may be closed by the engine at the moment in which the next request goes out.
            connector = aiohttp.TCPConnector(force_close=True, limit=1, ssl=False)  # we ask over loopback
            session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        try:
            while True:
                self._waiting_since = time.monotonic()
                failure = await self._ask(session)
                self._waiting_since = None
                self._note(failure)
                self._wake.clear()
                try:
                    async with asyncio.timeout(self._pause()):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            if session is not None:
                await session.close()

    def _pause(self) -> float:
        if self.failure is not None:
            return SOON
        if self._every is not None:
            return self._every
        return WATCHED if time.monotonic() - self._wanted_at < IDLE else IDLE

    def _note(self, failure: str | None) -> None:
        before, self.failure = self.failure, failure
        self._told_at = time.monotonic()
        if failure is None:
            self.well_at = self._told_at
            if before is not None and not self._quiet:
                log.info("the engine serves%s: %s", " again" if self.first.is_set() else "", self.what)
            self.first.set()
        elif self.first.is_set() and before is None and not self._quiet:
            log.warning("the engine does not serve: %s: %s", self.what, failure)

    async def _ask(self, session: aiohttp.ClientSession | None) -> str | None:
        if session is None:
            parts = urlsplit(self.url)
            return await refuses(PortOpen(parts.hostname or "", parts.port or 0, "engine"), LIMIT)
        import aiohttp

        try:
            async with asyncio.timeout(LIMIT), session.get(self.url, allow_redirects=False) as answer:
                status = answer.status
        except TimeoutError:
            return f"no answer for {LIMIT:g} s"
        except aiohttp.ClientConnectorError as error:
            number = error.os_error.errno  # asyncio has words of its own for it
            return os.strerror(number).lower() if number and number > 0 else str(error.os_error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return str(error) or type(error).__name__
        if status in NOT_KNOWN and self.at.otherwise and self.url != self.at.otherwise:
            self.url = self.at.otherwise
            return await self._ask(session)
        return None if 200 <= status < 400 else str(status)  # as a kubelet sees it


def watch_engine(pod: Pod, main: Main) -> None:
    """Follow the engine's health from here on."""
    hang = pod.settings.hang_timeout
    if main.health is None and hang is not None and pod.group is not None and pod.group.is_leader:
        log.warning(
            "--hang-timeout does nothing: where this engine tells its health is not known (--health-url says it)"
        )
    if main.health is not None:
        every = None if hang is None else min(WATCHED, hang / 4)
        pod.health = EngineHealth(main.health, every)
        pod.background(pod.health.watch())
        if hang is not None:
            from launcher.hang import watch_for_hang

            asked = pod.health
            if main.health.through is not None:
                asked = EngineHealth(Health(main.health.through), every, quiet=True)
                pod.background(asked.watch())
            pod.background(watch_for_hang(pod, asked, main.health.progress, hang))
