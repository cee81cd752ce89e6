"""Frozen dataclasses out of JSON data, by their own annotations: what does not fit them exactly is refused."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

LARGEST = 2**53  # whole numbers beyond are no plain JSON (RFC 8259, 6), and nothing here counts so far

_HINTS: dict[type[Any], dict[str, Any]] = {}


class BadMessage(ValueError):
    """A frame that is not a message of this protocol; str() says why."""


def build(kind: type[Any], data: dict[str, Any], where: str) -> Any:
    """One of that class. where: what the data is called in errors. Raises BadMessage."""
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in data:
            values[field.name] = _check(hints[field.name], data[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING:
            raise BadMessage(f"{where}.{field.name} is missing")
    return kind(**values)


def _hints(kind: type[Any]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)  # takes longer than all the rest
    return _HINTS[kind]


def _check(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _check(next(h for h in typing.get_args(hint) if h is not type(None)), value, where)
    origin = typing.get_origin(hint)
    if origin is list and isinstance(value, list):
        return [_check(typing.get_args(hint)[0], item, where) for item in value]
    if origin is dict and isinstance(value, dict):
        return {str(key): _check(typing.get_args(hint)[1], item, where) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast(type[Any], hint), value, where)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise BadMessage(f"{where} is too large")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadMessage(f"{where} is not finite")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            value.encode(errors="surrogateescape")  # an argv may hold bytes that are no UTF-8, in Python's spelling
        except UnicodeEncodeError:
            raise BadMessage(f"{where} is not text") from None
    plain = isinstance(hint, type) and origin is None and isinstance(value, hint)
    if plain and not (isinstance(value, bool) and hint is not bool):
        return value
    raise BadMessage(f"{where} is not {getattr(hint, '__name__', hint)}")
