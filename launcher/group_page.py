"""Asking a launcher for its /group page, from any machine that reaches it; a worker's leader is asked in its stead."""

from __future__ import annotations

import http.client
import json
import re
import socket
from dataclasses import dataclass
from typing import Any

from backends.plan import join_host_port

TIMEOUT = 5.0  # seconds, for each step of an answer
LARGEST = 16 * 1024 * 1024  # bytes; a member of a group takes some 300
KEYS = {"group", "size", "index", "phase", "phases", "members"}  # that the page has had from the first version on


class NoAnswer(Exception):
    """There is no such page; str() is one line that says why, and what to look at."""


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


def parse_address(text: str, port: int) -> Address:
    """HOST, HOST:PORT, an IPv6 address, or [IPv6]:PORT; port where the text has none. Raises ValueError."""
    literal = re.fullmatch(r"\[([^\[\]]+)\](?::(\d{1,5}))?", text, re.ASCII)
    plain = re.fullmatch(r"([^:\[\]]+)(?::(\d{1,5}))?", text, re.ASCII)
    bare = re.fullmatch(r"([^\[\]]*:[^\[\]]*:[^\[\]]*)()", text)
    match = literal or plain or bare
    if match is None or not 0 < int(match[2] or port) < 65536:
        raise ValueError(f"{text!r} is no address: write HOST, HOST:PORT, or [fd00::1]:{port}")
    return Address(match[1], int(match[2] or port))


def ask(address: Address) -> dict[str, Any]:
    """What the launcher there says of its group. Raises NoAnswer."""
    try:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT)
    except http.client.InvalidURL:
        raise NoAnswer(f"{address.host!r} is no host name") from None
    try:
        connection.request("GET", "/group")
        answer = connection.getresponse()
        body = answer.read(LARGEST)
        status = answer.status
    except TimeoutError:
        raise NoAnswer(f"{address} did not answer within {TIMEOUT:g} s") from None
    except ConnectionRefusedError:
        raise NoAnswer(
            f"no launcher listens at {address} (connection refused): has it started, and with this --port?"
        ) from None
    except socket.gaierror as error:
        raise NoAnswer(f"{address.host!r} has no address: {(error.strerror or str(error)).lower()}") from None
    except UnicodeError:
        raise NoAnswer(f"{address.host!r} is no host name") from None
    except http.client.HTTPException:
        raise NoAnswer(f"{address} answers, but is no lwsrun launcher (it does not speak HTTP)") from None
    except OSError as error:
        raise NoAnswer(f"cannot ask {address}: {(error.strerror or str(error)).lower()}") from None
    finally:
        connection.close()
    try:
        page = json.loads(body)
    except ValueError:
        page = None
    members = page.get("members") if isinstance(page, dict) and page.keys() >= KEYS else None
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise NoAnswer(f"{address} answers, but is no lwsrun launcher (HTTP {status} for /group)")
    found: dict[str, Any] = page
    return found


def ask_group(address: Address) -> tuple[dict[str, Any], str | None]:
    """The page of the leader, which sees all members, whichever pod of the group is asked; and a remark.

    The remark says why it is only the worker's own page. Raises NoAnswer when nobody answers at the address.
    """
    page = ask(address)
    leader = page.get("leader")
    if page["index"] in (0, None) or not isinstance(leader, dict):
        return page, None
    where = leader.get("ip") or leader.get("name")
    if not isinstance(where, str) or not isinstance(leader.get("port"), int):
        return page, "it does not say where its leader is"
    try:
        of_leader = ask(Address(where, leader["port"]))
    except NoAnswer as error:
        return page, f"this is what worker {page['index']} knows; its leader: {error}"
    if of_leader["group"] != page["group"] or of_leader["index"] != 0:
        return page, f"this is what worker {page['index']} knows; another group answers at {where}"
    return of_leader, None
