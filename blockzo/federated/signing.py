"""Long-term keys of clients, so that a server cannot invent participants of a secure sum.

Every client has an Ed25519 key (RFC 8032) and a roster: a file with the public keys of all clients of the federation, which its
owner got from the others' owners, never from the server. A client signs its keys of a sum; it refuses keys that nobody in its
roster signed for this sum.

    python -m blockzo.federated.signing KEYS hospital-a

makes KEYS/hospital-a.signing, the private half, and prints the line for everyone's roster: OpenSSH's form of a public key, and a
name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC, SIGNATURE = 32, 64
"""Bytes of a public key and of a signature."""
_SUFFIX = ".signing"


@dataclass(frozen=True)
class Roster:
    """Clients of a federation, by public key. `source` says where it comes from."""

    names: dict[bytes, str]
    source: str = "the roster"

    @classmethod
    def load(cls, path: Path) -> Roster:
        """One client a line, as an OpenSSH public key and its name; empty lines and those that begin with # are left out.

        Raises:
            ValueError: a line is anything else, or a key or name stands twice; with the number of the line.
        """
        names: dict[bytes, str] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the roster {path} cannot be read: {error}") from None
        for number, line in enumerate(text.splitlines(), 1):
            parts = line.split()
            if not parts or parts[0].startswith("#"):
                continue
            public = _public_of(" ".join(parts[:2]))
            if public is None or len(parts) != 3:
                raise ValueError(f"{path}, line {number}: {line[:80]!r}; expected 'ssh-ed25519 KEY NAME'")
            if public in names or parts[2] in names.values():
                raise ValueError(f"{path}, line {number}: the key or the name {parts[2]!r} is there twice")
            names[public] = parts[2]
        if len(names) < 2:
            raise ValueError(f"{path} names {len(names)} clients; a sum that hides its terms needs 2 or more")
        return cls(names, os.fspath(path))


@dataclass(frozen=True)
class Signer:
    """A client's own key, whom it knows, and how few it would be summed with.

    Attributes: `least`, clients in a sum, this one counted: with fewer it goes no further.
    """

    key: Ed25519PrivateKey
    roster: Roster
    least: int = 2

    def __post_init__(self) -> None:
        if self.public not in self.roster.names:
            raise ValueError(
                f"this client's own public key ({fingerprint(self.public)}) is not in {self.roster.source}; others that have "
                "the same list would refuse it: add its line everywhere"
            )
        if isinstance(self.least, bool) or not 2 <= self.least <= len(self.roster.names):
            raise ValueError(
                f"the least number of clients in a sum is {self.least}; expected 2 to {len(self.roster.names)}, as many as "
                f"{self.roster.source} names"
            )

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @classmethod
    def load(cls, key: Path, roster: Path, least: int = 2) -> Signer:
        """From files as `make_key` and `Roster.load` describe.

        Raises:
            ValueError: one of them is missing, damaged, or of another kind; the key can be read by others.
        """
        return cls(_private(key), Roster.load(roster), least)

    def sign(self, statement: bytes) -> bytes:
        return self.key.sign(statement)


class SignerError(ValueError):
    """A client whose signing key does not go with a run; the text says what to do."""


def check_signer(signer: Signer | None, signed: bool) -> None:
    """Raises SignerError where a run's secure sums are signed and this client cannot, or the other way round."""
    if signed and signer is None:
        raise SignerError(
            "the run's secure sums are signed, and this client has no signing key and roster; make the key with "
            "python -m blockzo.federated.signing, and give both to the client (docs/privacy.md)"
        )
    if signer is not None and not signed:
        raise SignerError(
            "the run's secure sums are unsigned; this client, which has a signing key, takes part in signed ones"
        )


def verified(public: bytes, signature: bytes, statement: bytes) -> bool:
    """Did the holder of a public key sign these bytes?"""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement)
        return True
    except (InvalidSignature, ValueError):
        return False


def fingerprint(public: bytes) -> str:
    """As OpenSSH shows it, so that owners can compare keys by telephone."""
    import base64
    import hashlib

    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (b"ssh-ed25519", public))
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def new_signers(names: Sequence[str], least: int = 2) -> dict[str, Signer]:
    """Keys in memory, for clients of one process."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    keys = {name: Ed25519PrivateKey.generate() for name in names}
    roster = Roster({key.public_key().public_bytes_raw(): name for name, key in keys.items()})
    return {name: Signer(key, roster, least) for name, key in keys.items()}


def make_key(folder: Path, name: str) -> Path:
    """The private half as FOLDER/NAME.signing (OpenSSH's format, mode 0600); made once."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not name or any(c.isspace() or c in "/\\#" or not c.isprintable() for c in name) or name.startswith("."):
        raise ValueError(f"the name is {name!r}; expected letters, digits, dashes, no spaces or slashes")
    path = folder / f"{name}{_SUFFIX}"
    if path.exists():
        _private(path)
        return path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = Ed25519PrivateKey.generate().private_bytes(
        form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()
    )
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    return path


def roster_line(path: Path) -> str:
    """The line of a client's key in everyone's roster."""
    from cryptography.hazmat.primitives import serialization as form

    public = _private(path).public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    return f"{public.decode()} {path.name.removesuffix(_SUFFIX)}"


def _private(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        found = os.stat(path)
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"the signing key {path} cannot be read ({error.strerror}); make one: python -m blockzo.federated.signing FOLDER NAME"
        ) from None
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ValueError(f"the signing key {path} can be read by others; chmod 600 it, or make a new one")
    try:
        key = load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path} is no private key in OpenSSH's format without a password ({error})") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} holds another kind of key; expected Ed25519 (python -m blockzo.federated.signing)")
    return key


def _public_of(text: str) -> bytes | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else None


def make_roster(path: Path, keys: Sequence[Path]) -> Path:
    """A roster of these keys, for clients whose keys lie on one machine."""
    new = path.with_name(path.name + ".new")
    new.write_text("".join(roster_line(key) + "\n" for key in keys), encoding="utf-8")
    os.replace(new, path)
    return path


def main() -> None:
    """`python -m blockzo.federated.signing FOLDER NAME...`"""
    import argparse

    parser = argparse.ArgumentParser(
        description="Makes keys that clients of secure sums sign with; prints roster lines."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", nargs="+", help="of a client: FOLDER/NAME.signing is made, where it is missing")
    given = parser.parse_args()
    try:
        print(*(roster_line(make_key(given.folder, name)) for name in given.name), sep="\n")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
