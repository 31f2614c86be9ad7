# SPDX-License-Identifier: GPL-2.0-only
"""Certificates for tests, made by openssl: authorities, and what they sign."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


def openssl(*arguments: str, text: str = "") -> str:
    """Output of openssl(1). Raises with what it said when it fails."""
    done = subprocess.run(["openssl", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Signed:
    """A certificate and its key, as files."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority with a directory of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory / name
        self._directory.mkdir()
        self.cert = self._directory / "ca.pem"
        self._key = self._directory / "ca.key"
        new_key(self._key)
        subject = ["-subj", f"/CN={name}", "-days", "2"]
        constraints = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        openssl("req", "-x509", "-new", "-key", str(self._key), "-out", str(self.cert), *subject, *constraints)

    def sign(self, name: str, alt_names: str, *, rsa: bool = False) -> Signed:
        """`alt_names` as openssl writes them: ``DNS:localhost,IP:127.0.0.1``."""
        made = Signed(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        new_key(made.key, rsa=rsa)
        request = openssl("req", "-new", "-key", str(made.key), "-subj", f"/CN={name}")
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alt_names}\n")
        openssl(
            *("x509", "-req", "-CA", str(self.cert), "-CAkey", str(self._key), "-CAcreateserial", "-days", "2"),
            *("-extfile", str(extensions), "-out", str(made.cert)),
            text=request,
        )
        return made


CLIENT_NAMES = "DNS:client.example,email:ops@example.org,URI:spiffe://cluster/prometheus,IP:10.0.0.7,IP:2001:db8::7"


@dataclass(frozen=True)
class Pki:
    """Two authorities, and what a server and its clients have of them."""

    ours: Authority
    others: Authority
    server: Signed
    renewed: Signed
    client: Signed
    stranger: Signed
    """With the names of the client, signed by the others."""


def make_pki(directory: Path) -> Pki:
    ours, others = Authority(directory, "ours"), Authority(directory, "others")
    return Pki(
        ours,
        others,
        ours.sign("server", "IP:127.0.0.1", rsa=True),
        ours.sign("renewed", "IP:127.0.0.1"),
        ours.sign("client", CLIENT_NAMES),
        others.sign("client", CLIENT_NAMES),
    )


def client(pki: Pki, own: Signed | None = None) -> ssl.SSLContext:
    """Trusts our authority, and shows a certificate of its own if it has one."""
    context = ssl.create_default_context(cafile=str(pki.ours.cert))
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


def new_key(path: Path, *, rsa: bool = False) -> None:
    """A private key in PEM format."""
    kind = ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"] if rsa else ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    openssl("genpkey", "-algorithm", *kind, "-out", str(path))
