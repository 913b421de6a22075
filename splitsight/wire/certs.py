"""A certificate authority for development: one root, certificates for a server and for clients, and a token a role.

Made with ``cryptography``: elliptic-curve keys (P-256), short-lived certificates with subject alternative names
(RFC 5280), so that TLS libraries take them without a switch that turns checks off. For development and demonstrations:
the root's key lies beside what it signed.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from splitsight.errors import UserError
from splitsight.wire.channels import host_of

__all__ = ["ROLES", "make_certificates"]

ROLES = ("edge", "tap", "oracle", "operator")
"""Who may call what: an edge streams, an adversary reads the tap or asks the oracle, an operator drives the page."""

_PEM = serialization.Encoding.PEM


def make_certificates(out: Path, hosts: Sequence[str], days: int = 30, now: datetime | None = None) -> list[Path]:
    """Write ``ca.pem``, ``ca.key``, ``server.pem``, ``server.key``, ``client.pem``, ``client.key`` and a token a role.

    Private keys and tokens can be read by their owner alone. The folder may exist, none of the files may.

    Args:
        out: folder.
        hosts: names and IP addresses by which the server is reached; localhost, 127.0.0.1 and ::1 are added.
        days: how long the certificates are valid, ≥ 1.
        now: the first moment of that; by default now.

    Returns:
        What was written.

    Raises:
        UserError: a host that is none, or a file that is there already.
    """
    names = [host_of(host, "--host") for host in [*hosts, "localhost", "127.0.0.1", "::1"]]
    begin = now or datetime.now(UTC)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "splitsight development CA")])
    root = _signed(root_name, root_name, root_key, root_key, begin, days, authority=True)
    files: dict[str, bytes] = {"ca.pem": root.public_bytes(_PEM), "ca.key": _key(root_key)}
    for role, usage in (("server", ExtendedKeyUsageOID.SERVER_AUTH), ("client", ExtendedKeyUsageOID.CLIENT_AUTH)):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"splitsight {role}")])
        own = names if role == "server" else ["localhost"]
        made = _signed(name, root_name, key, root_key, begin, days, usage=usage, names=own, root=root_key)
        files |= {f"{role}.pem": made.public_bytes(_PEM), f"{role}.key": _key(key)}
    files |= {f"{role}.token": secrets.token_urlsafe(32).encode() + b"\n" for role in ROLES}
    out.mkdir(parents=True, exist_ok=True)
    if (there := next((name for name in files if (out / name).exists()), None)) is not None:
        raise UserError(f"{out / there} is there already: give another folder, or remove it")
    for name, content in files.items():
        path = out / name
        path.touch(mode=0o644 if name.endswith(".pem") else 0o600)
        path.write_bytes(content)
    return [out / name for name in files]


def _key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    begin: datetime,
    days: int,
    *,
    authority: bool = False,
    usage: x509.ObjectIdentifier | None = None,
    names: Sequence[str] = (),
    root: ec.EllipticCurvePrivateKey | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # a clock that is a little behind must not find it not valid yet
        .not_valid_before(begin - timedelta(minutes=5))
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if root is not None:
        issued = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())
        builder = builder.add_extension(issued, critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if names:
        unique = [_alternative(name) for name in dict.fromkeys(names)]
        builder = builder.add_extension(x509.SubjectAlternativeName(unique), critical=False)
    return builder.sign(signer, hashes.SHA256())
