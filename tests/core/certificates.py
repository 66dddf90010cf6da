"""Certificates for local servers: self-signed, expired, or for another host."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_certificate(
    folder: Path,
    *,
    address: str = "127.0.0.1",
    hosts: Sequence[str] = (),
    first_day: int = -1,
    days: int = 30,
) -> tuple[ssl.SSLContext, Path]:
    """Make a self-signed certificate.

    Args:
        folder: The folder of the files.
        address: The IP address of the server.
        hosts: Its other names.
        first_day: The start of its validity, in days from now.
        days: Its validity in days.

    Returns:
        The TLS context of a server with this certificate, and the file that makes a client trust it.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "imbrace-lake test")])
    begins = datetime.now(UTC) + timedelta(days=first_day)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address(address)), *map(x509.DNSName, hosts)]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file, both = folder / "certificate.pem", folder / "server.pem"
    file.write_bytes(certificate)
    both.write_bytes(private + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context, file
