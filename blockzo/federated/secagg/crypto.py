"""Keys, masks and the cipher between clients of a secure sum, all from `cryptography`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


def need_cryptography() -> None:
    """Raises ImportError, with what to do, where `cryptography` is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ImportError("secure sums need cryptography: pip install 'blockzo[privacy]'") from error


def new_key() -> X25519PrivateKey:
    """From the operating system's generator."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate()


def key_from(secret: bytes) -> X25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret)


def agreed(own: X25519PrivateKey, other: bytes, session: bytes, purpose: bytes) -> bytes:
    """32 bytes that two key holders share: X25519 (RFC 7748), then HKDF-SHA256 (RFC 5869) bound to session and purpose.

    Raises:
        ValueError: the other key is one of the few that agree on nothing secret.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    secret = own.exchange(X25519PublicKey.from_public_bytes(other))
    return HKDF(SHA256(), length=32, salt=session, info=b"blockzo " + purpose).derive(secret)


def stream(key: bytes, words: int) -> Any:
    """uint64 [words]: ChaCha20 under a key that is used for nothing else."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    data = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * words))
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def seal(key: bytes, sender: int, receiver: int, session: bytes, data: bytes) -> bytes:
    """ChaCha20-Poly1305; a key carries one message each way."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    route = sender.to_bytes(4, "little") + receiver.to_bytes(4, "little")
    return ChaCha20Poly1305(key).encrypt(route + bytes(4), data, session + route)


def unseal(key: bytes, sender: int, receiver: int, session: bytes, data: bytes) -> bytes | None:
    """What `seal` was given; None where the bytes are not its."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    route = sender.to_bytes(4, "little") + receiver.to_bytes(4, "little")
    try:
        return ChaCha20Poly1305(key).decrypt(route + bytes(4), data, session + route)
    except InvalidTag:
        return None
