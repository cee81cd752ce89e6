"""Who knows the group's token, proved by TLS: both sides hold the same key, made from the token, and trust only that.

cryptography is imported here alone, and this module only where there is a token: it costs some 25 ms and 8 MB.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

PURPOSE = b"lwsrun group channel, Ed25519 key, version 1"
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lwsrun group")])
# For ever (RFC 5280, 4.1.2.5): a pod's clock may be wrong, and the certificate is as good as the token, not as a date.
FROM, UNTIL = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass(frozen=True)
class Tls:
    """One context for each role, so that a proof made in the one never counts in the other."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def make_tls(token: bytes, group: str) -> Tls:
    """Contexts with which only holders of this token, and for this group, can finish a handshake.

    Why this is sound: the handshake of TLS 1.3 makes each side sign all that was said (RFC 8446, 4.4.3) with the
    private key of its certificate. Both have one and the same key, derived from the token, and accept no other; so
    whoever finishes the handshake knows the token. What is signed holds fresh randomness of both sides and the signer's
    role, so neither a recording nor the other side's own signature can be played back. The session keys come from an
    ephemeral exchange: who learns the token later still cannot read what was recorded.

    What it does not say: which member it is. Everyone who has the token is trusted to be a member, or the leader.
    The group is the salt, so groups that share a Secret do not accept each other, nor a relay between them.

    A stranger who opens a handshake is shown the certificate, and could guess tokens against its public key at leisure.
    That is hopeless for a random token and easy for a word: hence the least length, and `openssl rand -hex 32`.
    """
    seed = HKDF(algorithm=hashes.SHA256(), length=32, salt=group.encode(errors="surrogateescape"), info=PURPOSE)
    key = Ed25519PrivateKey.from_private_bytes(seed.derive(token))
    certificate = _certificate(key)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = certificate.public_bytes(Encoding.PEM)
    server = _context(ssl.PROTOCOL_TLS_SERVER, secret, public)
    # A ticket would let its holder come back without the certificate. Nobody needs to: a member joins once.
    server.num_tickets = 0
    return Tls(server, _context(ssl.PROTOCOL_TLS_CLIENT, secret, public))


def _certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    """The same bytes in every pod: Ed25519 signatures are deterministic, and nothing else here may vary."""
    return (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(FROM)
        .not_valid_after(UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, algorithm=None)
    )


def _context(role: int, secret: bytes, public: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(role)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.check_hostname = False  # the name says nothing here: pods are found by address, trust comes from the key
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=public.decode())
    # ssl takes a private key from a file only. This one lives in memory and goes with its descriptor: it has no name,
    # touches no disk, and no child inherits it.
    descriptor = os.memfd_create("key", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(secret + public)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
