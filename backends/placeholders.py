"""Placeholders in arguments: {leader} {leader_ip} {size} {index} {pod_ip} {gpus}, and products such as {index*gpus}.

Anything else in braces is left as it is, so that JSON arguments pass unharmed.
"""

from __future__ import annotations

from backends.errors import ConfigError, Fault
from backends.plan import Request

NUMBERS = ("size", "index", "gpus")


def expand_all(texts: tuple[str, ...], request: Request) -> tuple[str, ...]:
    """Each text with its placeholders replaced by this pod's values."""
    values = {
        "leader": request.group.leader_address,
        "leader_ip": request.leader.ip,
        "size": str(request.group.size),
        "index": str(request.group.index),
        "pod_ip": request.node.ip,
        "gpus": str(request.node.gpus),
    }
    return tuple(_expand(text, values) for text in texts)


def _expand(text: str, values: dict[str, str]) -> str:
    done: list[str] = []
    rest = text
    while True:
        before, brace, after = rest.partition("{")
        done.append(before)
        if not brace:
            return "".join(done)
        inside, closing, tail = after.partition("}")
        value = _value(inside, values) if closing else None
        if value is None:
            done.append("{")
            rest = after
        else:
            done.append(value)
            rest = tail


def _value(inside: str, values: dict[str, str]) -> str | None:
    if inside in values:
        return values[inside]
    factors = [factor.strip() for factor in inside.split("*")]
    sound = all(
        factor.isidentifier() or (factor.isascii() and factor.isdigit() and len(factor) < 10) for factor in factors
    )
    if len(factors) < 2 or not sound or not any(factor in values for factor in factors):
        return None  # somebody else's braces, such as JSON
    product = 1
    for factor in factors:
        if factor in NUMBERS:
            product *= int(values[factor])
        elif factor.isdigit():
            product *= int(factor)
        else:
            raise ConfigError(
                Fault(
                    f"{{{inside}}} cannot be multiplied: {factor!r} is not a number",
                    f"factors out of {', '.join(NUMBERS)} and whole numbers, e.g. {{index*gpus}}",
                )
            )
    return str(product)
