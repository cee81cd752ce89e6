"""The HTTP side of the port, for probes and people: /livez /readyz /startupz /group, on every pod."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import psutil
from aiohttp import web

from backends.errors import ConfigError, Fault


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

    async def open(self, host: str | None, port: int) -> None:
        """Listen. Raises ConfigError when the port or the address is not to be had."""
        self._runner = web.AppRunner(self.app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    Fault(
                        f"port {port} is in use{_by_whom(port)}",
                        "a free port for the group channel, the same in every pod of the group",
                        "set --port (LWSRUN_PORT); with host networking, one port for each group on a node",
                    )
                ) from None
            where = f"{host or '*'} port {port}"
            raise ConfigError(Fault(f"cannot listen on {where}: {error.strerror}", "", "--listen, --port")) from None
        except UnicodeError:
            raise ConfigError(Fault(f"--listen is {host!r}", "an address or a host name of this pod")) from None

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


async def _answer(reason: str | None) -> web.Response:
    return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=reason + "\n")


def _by_whom(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN and connection.pid
            if listening and connection.laddr and connection.laddr[1] == port:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return ""
