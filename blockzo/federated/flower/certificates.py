"""Keys and certificates of a deployment: an authority, the SuperLink's certificate, and a key for every node."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from blockzo.federated.flower.places import private_folder

_PEM, _PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()


@dataclass(frozen=True)
class ServerFiles:
    """`authority` goes to every node; `key` stays on the SuperLink's host."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class NodeFiles:
    """`private` stays on the node; `public` is registered with the SuperLink."""

    private: Path
    public: Path


def _write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    return path


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _PLAIN)


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # clocks of hosts differ a little
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )


def server_files(folder: Path, hosts: Sequence[str] = ("localhost", "127.0.0.1"), days: int = 90) -> ServerFiles:
    """Certificate of the SuperLink for these names and addresses, and this machine's own; made once.

    The authority's key is not kept.
    """
    private_folder(folder)
    files = ServerFiles(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    if files.certificate.exists():
        return files
    authority_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    authority = _certificate("blockzo authority", authority_key, "blockzo authority", authority_key, days)
    authority = authority.add_extension(x509.BasicConstraints(True, 0), True)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    signed = authority.add_extension(usage, True).sign(authority_key, hashes.SHA384())
    names: list[x509.GeneralName] = []
    # Flower's own processes beside the SuperLink call it by the address of the machine itself
    for host in dict.fromkeys((*hosts, "localhost", "127.0.0.1")):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    leaf = _certificate(hosts[0], key, "blockzo authority", authority_key, days)
    leaf = leaf.add_extension(x509.SubjectAlternativeName(names), False)
    leaf = leaf.add_extension(x509.BasicConstraints(False, None), True)
    certificate = leaf.sign(authority_key, hashes.SHA384())
    _write(files.authority, signed.public_bytes(_PEM), 0o644)
    _write(files.key, _key_bytes(key))
    _write(files.certificate, certificate.public_bytes(_PEM), 0o644)
    return files


def node_files(folder: Path, name: str) -> NodeFiles:
    """Key with which a node proves who it is (P-384, in OpenSSH's format); made once."""
    private_folder(folder)
    files = NodeFiles(folder / f"{name}.key", folder / f"{name}.pub")
    if files.public.exists():
        return files
    files.private.unlink(missing_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    _write(files.private, key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, _PLAIN))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(files.public, public + b"\n", 0o644)
    return files


def main() -> None:
    """`python -m blockzo.federated.flower.certificates FOLDER [--host NAME]... [--node NAME]...`"""
    import argparse

    parser = argparse.ArgumentParser(description="Makes keys and certificates of a Flower deployment.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", action="append", default=[], help="name or address that nodes reach the SuperLink by")
    parser.add_argument("--node", action="append", default=[], help="name of a node that needs a key")
    given = parser.parse_args()
    if given.host:
        print(*vars(server_files(given.folder, given.host)).values(), sep="\n")
    for name in given.node:
        print(*vars(node_files(given.folder, name)).values(), sep="\n")


if __name__ == "__main__":
    main()
