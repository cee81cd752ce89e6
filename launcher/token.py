"""The group's shared secret, as the environment or a file gives it; no message ever shows any of it."""

from __future__ import annotations

import os

from backends.errors import ConfigError, Fault

VARIABLE = "LWSRUN_TOKEN"
SHORTEST = 16  # bytes; far too few to guess when they are random
LONGEST = 64 * 1024
HOW_TO_MAKE_ONE = "make one with: openssl rand -hex 32"


def read_token(value: str | None, file: str | None) -> bytes | None:
    """The token, or None where neither is given. Raises ConfigError.

    A newline at its end is left out in both: it comes from an editor, or from `echo` on the way into a Secret, and one
    pod may take the Secret as a variable and another as a file.
    """
    if value is not None and file is not None:
        raise ConfigError(Fault(f"both {VARIABLE} and --token-file are given", "one of them"))
    if value is not None:
        return _checked(os.fsencode(value), VARIABLE)
    if file is None:
        return None
    try:
        with open(file, "rb") as opened:
            data = opened.read(LONGEST + 1)
    except OSError as error:
        raise ConfigError(
            Fault(f"--token-file {file} cannot be read: {error.strerror}", "a file that holds the group's token")
        ) from None
    return _checked(data, f"--token-file {file}")


def _checked(data: bytes, where: str) -> bytes:
    token = data.rstrip(b"\r\n")
    # An empty one is most likely a Secret without the key: without this the group would be open and nobody would know.
    if not token:
        raise ConfigError(Fault(f"{where} is empty", f"at least {SHORTEST} bytes", HOW_TO_MAKE_ONE))
    if len(token) < SHORTEST:
        wrong = f"the token in {where} has {len(token)} bytes"
        raise ConfigError(Fault(wrong, f"at least {SHORTEST} bytes", HOW_TO_MAKE_ONE))
    if len(token) > LONGEST:
        raise ConfigError(Fault(f"{where} is larger than {LONGEST // 1024} KiB", "a token", HOW_TO_MAKE_ONE))
    return token
