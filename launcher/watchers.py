"""The HTTP side of the port, for probes and people: /livez /readyz /startupz /group, on every pod."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web


class Watchers:
    """Serves the channel's port. Health is a reason, or None when all is well."""

    def __init__(
        self,
        *,
        not_ready: Callable[[], str | None],
        not_started: Callable[[], str | None],
        group: Callable[[], dict[str, Any]],
    ) -> None:
        self.app = web.Application(client_max_size=1024)
        self._group = group
        self.app.router.add_get("/livez", lambda _: _answer(None))
        self.app.router.add_get("/readyz", lambda _: _answer(not_ready()))
        self.app.router.add_get("/startupz", lambda _: _answer(not_started()))
        self.app.router.add_get("/group", self._show_group)
        self._runner: web.AppRunner | None = None

    async def _show_group(self, request: web.Request) -> web.Response:
        return web.json_response(self._group())

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Answer on sockets that listen already."""
        self._runner = web.AppRunner(self.app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        for each in sockets:
            await web.SockSite(self._runner, each).start()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


async def _answer(reason: str | None) -> web.Response:
    return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=reason + "\n")
