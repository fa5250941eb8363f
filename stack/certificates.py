"""A certificate authority of one's own, fresh for each stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Authority:
    """A CA that signed one server certificate, as PEM files.

    :param ca: kept to issue further certificates.
    """

    ca: trustme.CA
    ca_file: Path
    certificate_file: Path
    key_file: Path

    @property
    def ca_pem(self) -> str:
        """The CA's certificate."""
        return self.ca_file.read_text()


def make_authority(directory: Path, *names: str) -> Authority:
    """Make a CA and a server certificate for ``names`` (``localhost`` and ``127.0.0.1`` when none are given)."""
    directory.mkdir(parents=True, exist_ok=True)
    ca = trustme.CA(organization_name="airflow-rabbitmq-spark private test authority")
    server = ca.issue_cert(*(names or ("localhost", "127.0.0.1")))
    authority = Authority(ca, directory / "ca.pem", directory / "server.pem", directory / "server.key")
    ca.cert_pem.write_to_path(authority.ca_file)
    authority.certificate_file.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    authority.key_file.touch(mode=0o600)
    authority.key_file.write_bytes(server.private_key_pem.bytes())
    return authority
