"""The HTTP side of the port, for probes and people: /livez /readyz /startupz /metrics /group, on every pod."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from aiohttp import web

from launcher import status
from launcher.channel.port import Port, limits_for
from launcher.log import QUIET

if TYPE_CHECKING:
    from launcher.lifecycle import Pod
    from launcher.metrics import Exporter


class Watchers:
    """Serves the channel's port. Health is a reason, or None when all is well."""

    def __init__(self, pod: Pod) -> None:
        """pod is asked anew for every request: after a restart in place it is another."""
        self.pod = pod
        self.app = web.Application(client_max_size=1024)
        self.app.router.add_get("/livez", lambda _: _answer(None))
        self.app.router.add_get("/readyz", lambda _: _answer(status.probed(self.pod, status.not_ready)))
        self.app.router.add_get("/startupz", lambda _: _answer(status.probed(self.pod, status.not_started)))
        self.app.router.add_get("/group", self._show_group)
        self.app.router.add_get("/metrics", self._show_metrics)
        self.app.router.add_get("/join", self._join)
        self.app.on_response_prepare.append(_one_request_each)
        self._runner: web.AppRunner | None = None
        self._port: Port | None = None
        self._exporter: Exporter | None = None

    async def _show_group(self, request: web.Request) -> web.Response:
        return web.json_response(status.describe(self.pod))

    async def _show_metrics(self, request: web.Request) -> web.Response:
        if self._exporter is None:
            # In a thread, and for those only whom somebody scrapes.
            await asyncio.to_thread(import_module, "launcher.metrics")
            from launcher.metrics import Exporter

            self._exporter = self._exporter or Exporter()
        body, content_type = await self._exporter.page(self.pod, ",".join(request.headers.getall("Accept", ())))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _join(self, request: web.Request) -> web.StreamResponse:
        if self.pod.leader is None:
            return web.Response(status=404, text="no leader of a group is here, or not yet\n")
        assert self._port is not None
        if self._port.tls is not None and not request.secure:
            self._port.refuse("token", request.remote or "?", "it has no token, this group has one")
            return web.Response(status=403, text="this group has a token; join over TLS\n")
        return await self.pod.leader.handle_join(request, partial(self._port.admit, request))

    def _count(self, code: str) -> None:
        if self.pod.leader is not None:
            self.pod.leader.refused[code] += 1

    async def open(self, sockets: Sequence[socket.socket], seats: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """Answer on sockets that listen already. seats: members that may come. tls: how they prove to be members."""
        # aiohttp logs a traceback for each malformed request: as many lines as a stranger likes, and past our own log.
        self._runner = web.AppRunner(
            self.app, access_log=None, logger=QUIET, handle_signals=False, shutdown_timeout=0.5
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._port = Port(self._runner.server, limits_for(seats), tls, self._count)
        self._port.open(sockets)

    async def close(self) -> None:
        if self._port is not None:
            self._port.close()
        if self._runner is not None:
            await self._runner.cleanup()


async def _one_request_each(_: web.BaseRequest, response: web.StreamResponse) -> None:
    """A kept connection would only stand in the way of others; whoever comes again in seconds does not need it."""
    response.force_close()


async def _answer(reason: str | None) -> web.Response:
    return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=reason + "\n")
