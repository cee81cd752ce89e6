"""A /group page as people read it: what the group is, a row for each pod, and what it waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.channel.agreement import printable

HEADINGS = ("INDEX", "HOST", "IP", "PHASE", "SINCE", "GPUS", "ENGINE", "HEARTBEAT", "RESTARTS")


def serves(page: Mapping[str, Any]) -> bool:
    """Whether every pod of the group is here and serves, and the leader finds itself ready."""
    members = page["members"]
    return (
        page["index"] == 0
        and len(members) == page["size"]
        and all(member.get("phase") == "serving" for member in members)
        and page.get("not_ready") is None
    )


def render(page: Mapping[str, Any]) -> str:
    """Lines of text; whatever came from outside is shown as text that no terminal obeys."""
    return "\n".join((_title(page), *_columns([HEADINGS, *_rows(page)]), *_remarks(page)))


def _title(page: Mapping[str, Any]) -> str:
    here = f"{len(page['members'])} of {_text(page['size'])} pods here"
    engine = ", ".join(_text(page.get(key)) for key in ("backend", "mode") if page.get(key))
    parts = [
        f"group {_text(page['group'])}",
        *([engine] if engine else []),
        f"{_text(page['phase'])} for {duration(page.get('since_seconds'))}",
        here if page["index"] in (0, None) else f"seen by worker {_text(page['index'])} alone",
        *([f"run {_text(page['run'])}"] if page.get("run") else []),
        f"epoch {_text(page.get('epoch'))}",
    ]
    return " · ".join(parts)


def _rows(page: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    members = {member.get("index"): member for member in page["members"]}
    backend = page.get("backend") or ""
    absent = {index: None for index in page.get("missing") or () if index not in members}
    for index, member in sorted({**absent, **members}.items(), key=lambda pair: str(pair[0]).zfill(9)):
        if member is None:
            yield (_text(index), "-", "-", "missing", *["-"] * 5)
            continue
        engine = " ".join(part for part in (backend, member.get("engine_version") or "") if part)
        heard = member.get("heard_seconds")
        yield (
            *(_text(member.get(key)) for key in ("index", "host", "ip", "phase")),
            duration(member.get("since_seconds")),
            _text(member.get("gpus")),
            _text(engine or None),
            "-" if heard is None else f"{duration(heard)} ago",
            _text(member.get("restarts")),
        )


def _remarks(page: Mapping[str, Any]) -> Iterator[str]:
    if page.get("not_ready"):
        yield f"not ready: {_text(page['not_ready'])}"
    refused = page.get("joins_refused") or {}
    if refused:
        yield "joins refused: " + ", ".join(f"{_text(reason)} {_text(count)}" for reason, count in refused.items())


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def duration(seconds: object) -> str:
    """0.4s, 17s, 12m3s, 5h20m, 3d4h."""
    if not isinstance(seconds, int | float):
        return "-"
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = int(seconds)
    for unit, size, lower, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part}{lower}"
    return f"{whole}s"


def _text(value: object) -> str:
    return "-" if value is None else printable(str(value))
