"""Ed25519 keys of one run, and key pairs that were mounted. Texts are in OpenSSH's own formats."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from backends.errors import ConfigError, Fault

# Kubernetes' type kubernetes.io/ssh-auth, and the names that the operators for MPI mount it under.
PRIVATE = ("id_ed25519", "id_ecdsa", "id_rsa", "ssh-privatekey")
MOUNT = "mount a Secret with id_ed25519, id_ed25519.pub and authorized_keys; or leave --ssh-keys out"
LONGEST = 64 * 1024  # bytes of a file that is a key


@dataclass(frozen=True)
class KeyPair:
    private: str = field(repr=False)
    public: str


def mint() -> KeyPair:
    """A new one, for this run."""
    return _pair(ed25519.Ed25519PrivateKey.generate())


def _pair(key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> KeyPair:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private.decode(), public.decode())


def is_public_key(text: str) -> bool:
    """Whether it is one key and nothing else: it comes from another pod, and goes into a line of a file."""
    kind, blank, data = text.partition(" ")
    try:
        raw = base64.b64decode(data, validate=True)
    except ValueError:
        return False
    # It begins with its own kind, with the length in four bytes: RFC 4253, 6.6.
    return bool(blank) and text.isascii() and raw[4 : 4 + len(kind)] == kind.encode() and len(text) < LONGEST


def mounted_pair(directory: str) -> KeyPair:
    """The private key that was mounted there. Raises ConfigError for what cannot be used, and says why."""
    path = _first(directory, PRIVATE)
    if path is None:
        raise _nothing(directory, f"none of {', '.join(PRIVATE)}")
    data = _read(path)
    loaders = (serialization.load_ssh_private_key, serialization.load_pem_private_key)
    reason = ""
    for load in loaders:
        try:
            key = load(data, None)
        except TypeError:
            reason = "it is locked with a passphrase"
            break
        except Exception as error:  # the library has several of its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        if isinstance(key, ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            return _pair(key)
        reason = "it is of a kind that OpenSSH does not take"
        break
    raise ConfigError(Fault(f"{path} cannot be used as a private key: {reason}", "an OpenSSH or PEM key", MOUNT))


def mounted_public(directory: str) -> tuple[str, ...]:
    """The public keys that were mounted there for the leader to come in with. Raises ConfigError."""
    names = ("authorized_keys", *(f"{name}.pub" for name in PRIVATE), "ssh-publickey")
    path = _first(directory, names)
    if path is None:
        return (mounted_pair(directory).public,)
    lines = _read(path).decode(errors="replace").splitlines()
    found = tuple(key for line in lines if (key := " ".join(line.split()[:2])) and is_public_key(key))
    if not found:
        raise ConfigError(Fault(f"{path} holds no public key", "lines such as `ssh-ed25519 AAAA…`, no options", MOUNT))
    return found


def _first(directory: str, names: Sequence[str]) -> Path | None:
    try:
        here = os.listdir(directory)
    except PermissionError:
        raise ConfigError(_owned(Path(directory))) from None
    except OSError as error:
        raise _nothing(directory, (error.strerror or str(error)).lower()) from None
    return next((Path(directory) / name for name in names if name in here), None)


def _read(path: Path) -> bytes:
    try:
        found = path.stat()
        with path.open("rb") as file:
            data = file.read(LONGEST)
    except PermissionError:
        raise ConfigError(_owned(path)) from None
    except OSError as error:
        raise _nothing(str(path), error.strerror or str(error)) from None
    if found.st_mode & 0o022:
        raise ConfigError(
            Fault(
                f"{path} can be written to by others (mode {stat.S_IMODE(found.st_mode):04o})",
                "a key that only its owner can change",
                "mount the Secret with defaultMode 0400, or 0440 with fsGroup for a pod that is not root",
            )
        )
    return data


def _owned(path: Path) -> Fault:
    try:
        found = path.stat()
        whose = f"is owned by uid {found.st_uid}, gid {found.st_gid}, mode {stat.S_IMODE(found.st_mode):04o}"
    except OSError:
        whose = "lies in a directory that is closed"
    return Fault(
        f"{path} {whose}: this pod runs as uid {os.geteuid()} and cannot read it",
        "a key that this user can read; lwsrun copies it with the mode that ssh asks for",
        f"set securityContext.fsGroup to {os.getegid()} and the Secret's defaultMode to 0440",
    )


def _nothing(where: str, why: str) -> ConfigError:
    return ConfigError(Fault(f"--ssh-keys {where}: {why}", "a directory with a key pair", MOUNT))
