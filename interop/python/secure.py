"""A lab whose daemon has a certificate and is reached by HTTPS, on the port that the clients take for it."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import pathlib
import random

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(address: str, directory: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Makes a certificate for an address that is its own authority; gives the files of it and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "tls.crt", directory / "tls.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    paths[1].chmod(0o600)
    return paths


@contextlib.contextmanager
def lab(process, directory: pathlib.Path):
    """The variables of such a lab, with `BAILIWICK_LAB_CERTIFICATE` among them. `process` is the class that starts one."""
    # An address of its own, because the port cannot be one.
    address = f"127.{random.randrange(16, 250)}.{random.randrange(1, 250)}.{random.randrange(1, 250)}"
    certificate_file, key_file = certificate(address, directory)
    given = {"BAILIWICK_TLS_CERT": str(certificate_file), "BAILIWICK_TLS_KEY": str(key_file)}
    os.environ.update(given)
    try:
        running = process("--listen", f"{address}:443")
    finally:
        for name in given:
            del os.environ[name]
    try:
        there = {"DECLAW_DOMAIN": address, "DECLAW_API_URL": f"https://{address}"}
        yield {**running.variables, **there, "BAILIWICK_LAB_CERTIFICATE": str(certificate_file)}
    finally:
        running.end()
