"""Placeholders in arguments: {leader} {leader_ip} {size} {index} {pod_ip} {gpus}, and products such as {index*gpus}.

{workers} is the workers' addresses with commas between, {workers:PORT} the same with a port.

Anything else in braces is left as it is, so that JSON arguments pass unharmed.
"""

from __future__ import annotations

from backends.errors import ConfigError, Fault
from backends.plan import Request, join_host_port

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
    workers = tuple(node.ip for node in request.nodes[1:])
    return tuple(_expand(text, values, workers) for text in texts)


def _expand(text: str, values: dict[str, str], workers: tuple[str, ...]) -> str:
    done: list[str] = []
    rest = text
    while True:
        before, brace, after = rest.partition("{")
        done.append(before)
        if not brace:
            return "".join(done)
        inside, closing, tail = after.partition("}")
        value = _value(inside, values, workers) if closing else None
        if value is None:
            done.append("{")
            rest = after
        else:
            done.append(value)
            rest = tail


def _value(inside: str, values: dict[str, str], workers: tuple[str, ...]) -> str | None:
    if inside in values:
        return values[inside]
    if inside == "workers":
        return ",".join(workers)
    name, colon, port = inside.partition(":")
    if name == "workers" and colon and port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536:
        return ",".join(join_host_port(worker, int(port)) for worker in workers)
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
