"""How many requests an engine still has, asked on its own pages."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import NamedTuple

import aiohttp

from backends.plan import InFlight, Progress

TIMEOUT = 2.0  # seconds, for both pages


class Requests(NamedTuple):
    """What the engine works on, and what its server counts; the latter None where it is not told."""

    engine: int
    server: int | None


class NoAnswer(Exception):
    """Nothing came in time: the engine has not started, is too busy, or is stuck."""


async def samples(page: str, names: Collection[str]) -> list[tuple[str, str, float]] | None:
    """Name, labels and value of these metrics on a Prometheus page; None where there is no answer in time."""
    try:
        async with (
            asyncio.timeout(TIMEOUT),
            aiohttp.ClientSession() as session,
            session.get(page, ssl=False) as answer,
        ):
            lines = [line for line in (await answer.text()).splitlines() if _name(line) in names]
        return [(_name(line), line.rpartition("}")[0], float(line.rsplit(" ", 1)[1])) for line in lines]
    except (aiohttp.ClientError, OSError, ValueError, LookupError):
        return None


async def complete(at: Progress) -> None:
    """Ask for one token, and return when there is an answer, whatever it is."""
    headers = {} if at.key is None else {"Authorization": f"Bearer {at.key}"}
    forever = aiohttp.ClientTimeout(total=None)
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=forever) as session:
            async with session.get(at.models, ssl=False) as answer:
                model = (await answer.json())["data"][0]["id"]
            wanted = {"model": model, "prompt": [1], "max_tokens": 1}
            async with session.post(at.completions, json=wanted, ssl=False) as answer:
                await answer.read()
    except (aiohttp.ClientError, OSError, ValueError, TypeError, LookupError):
        return


async def look(at: InFlight) -> Requests | None:
    """Ask both pages. None where the engine answers, but does not tell. Raises NoAnswer."""
    try:
        async with asyncio.timeout(TIMEOUT):
            found = await samples(at.metrics, at.gauges)
            if found is None:
                raise NoAnswer
            if not found:
                return None
            server = None
            if at.load is not None:
                # The certificate is for the engine's clients; we ask over loopback.
                async with aiohttp.ClientSession() as session, session.get(at.load, ssl=False) as answer:
                    server = int((await answer.json())[at.load_key])
            return Requests(int(sum(value for _, _, value in found)), server)
    except (aiohttp.ContentTypeError, ValueError, TypeError, LookupError, ArithmeticError):
        return None
    except (aiohttp.ClientError, OSError):
        raise NoAnswer from None


def _name(line: str) -> str:
    """The metric of a sample line: https://prometheus.io/docs/instrumenting/exposition_formats/"""
    return line.partition(" ")[0].partition("{")[0]
