"""TLS of a connection: which certificates to trust and to show, read from whatever form people have them in."""

from __future__ import annotations

import base64
import binascii
import os
import re
import ssl
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_rabbitmq_spark.amqp.options import OptionError
from airflow_rabbitmq_spark.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)

#: Nothing that belongs into these options is larger; a path to something else should not fill the memory.
_LARGEST_FILE = 4 * 2**20


@dataclass(frozen=True, repr=False)
class TLS:
    """How to speak TLS. All certificates and keys are PEM text, so that they can travel to another machine.

    :param ca: authorities to trust; ``None`` for the system's own.
    :param certificate: client certificate, its chain after it.
    :param private_key: key of the client certificate.
    :param passphrase: of the key.
    :param server_name: sent to the server and looked for in its certificate, instead of the host.
    :param check_hostname: whether the certificate must be for this host.
    :param verify: whether the certificate must come from a trusted authority.
    :param minimum_version: ``TLSv1.2`` or ``TLSv1.3``.
    """

    ca: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    passphrase: str | None = None
    server_name: str | None = None
    check_hostname: bool = True
    verify: bool = True
    minimum_version: str = "TLSv1.2"

    def __repr__(self) -> str:
        ca = "system" if self.ca is None else f"{self.ca.count('BEGIN CERTIFICATE')} given"
        client = "none" if self.certificate is None else "given"
        return (
            f"TLS(ca={ca}, client certificate={client}, server_name={self.server_name!r}, "
            f"check_hostname={self.check_hostname}, verify={self.verify}, minimum_version={self.minimum_version})"
        )

    def context(self) -> ssl.SSLContext:
        """Make the context.

        :raises ConfigurationError: the certificates or the key cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion[self.minimum_version.replace(".", "_")]
        context.check_hostname = self.check_hostname and self.verify
        if not self.verify:
            context.verify_mode = ssl.CERT_NONE
        elif self.ca is None:
            context.load_default_certs()
        else:
            # An intermediate authority, or the server's own certificate, is trusted when somebody names it.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            _load_authorities(context, self.ca)
        if self.certificate is not None:
            self._load_client_certificate(context, self.certificate)
        return context

    def _load_client_certificate(self, context: ssl.SSLContext, certificate: str) -> None:
        if self.passphrase is not None and len(self.passphrase.encode()) > 1024:  # OpenSSL's own limit
            raise ConfigurationError("`private_key_passphrase` is longer than 1024 bytes")

        def passphrase() -> str:
            # Without this OpenSSL would ask on the terminal, and wait for ever in a worker.
            if self.passphrase is None:
                raise ConfigurationError("the key is encrypted: set `private_key_passphrase`")
            return self.passphrase

        try:
            with _as_file(f"{self.private_key or ''}\n{certificate}") as path:
                context.load_cert_chain(path, password=passphrase)
        except ssl.SSLError as error:
            reason = (error.reason or "").upper()
            if "MISMATCH" in reason:
                problem = "`private_key` does not belong to `client_certificate`: take both from the same place"
            elif "DECRYPT" in reason or "PASSWORD" in reason or self.passphrase is not None:
                problem = "`private_key` cannot be decrypted: `private_key_passphrase` is wrong, or the key is damaged"
            else:
                problem = f"`client_certificate` and `private_key` cannot be used ({error.reason or 'not valid PEM'})"
            raise ConfigurationError(problem) from None


def read_tls(values: Mapping[str, object]) -> TLS:
    """Make a :class:`TLS` from options that ``options.read_options`` has read.

    :raises OptionError: they contradict each other or cannot be used. The message names the options.
    """
    ca = _read_ca(values)
    certificate, private_key, passphrase = _read_client(values)
    verify = values.get("verify", True) is True
    if not verify and ca is not None:
        raise OptionError(
            "`verify` is false, so that the authorities of `ca_certificate` would not be used: remove one"
        )
    tls = TLS(
        ca=ca,
        certificate=certificate,
        private_key=private_key,
        passphrase=passphrase,
        server_name=_text_or_none(values.get("server_name")),
        check_hostname=verify and values.get("check_hostname", True) is True,
        verify=verify,
        minimum_version=str(values.get("minimum_tls_version", "TLSv1.2")),
    )
    if certificate is not None:
        try:
            tls.context()
        except ConfigurationError as error:
            raise OptionError(str(error)) from None
    return tls


def _read_client(values: Mapping[str, object]) -> tuple[str | None, str | None, str | None]:
    """Client certificate, its key and the key's passphrase."""
    certificate = private_key = None
    if "client_certificate" in values:
        client = _material(values["client_certificate"], "client_certificate")
        certificate = _blocks(client, "CERTIFICATE") or None
        private_key = _blocks(client, "PRIVATE KEY") or None
        if certificate is None:
            raise OptionError(f"option `client_certificate` holds {_kinds(client)} and no certificate")
    if "private_key" in values:
        if certificate is None:
            raise OptionError("option `private_key` is set without `client_certificate`: set both or neither")
        key = _material(values["private_key"], "private_key")
        private_key = _blocks(key, "PRIVATE KEY") or None
        if private_key is None:
            raise OptionError(f"option `private_key` holds {_kinds(key)} and no private key")
    if certificate is not None and private_key is None:
        raise OptionError("option `client_certificate` is set without `private_key`: set both or neither")
    passphrase = _text_or_none(values.get("private_key_passphrase"))
    if passphrase is not None and private_key is None:
        raise OptionError("option `private_key_passphrase` is set without `private_key`: remove it or set the key")
    return certificate, private_key, passphrase


def _read_ca(values: Mapping[str, object]) -> str | None:
    given = [name for name in ("ca_certificate", "ca_certificate_base64") if name in values]
    if not given:
        return None
    if len(given) > 1:
        raise OptionError("both `ca_certificate` and `ca_certificate_base64` are set: remove one")
    option = given[0]
    material = _material(values[option], option, base64_only=option.endswith("_base64"))
    ca = _blocks(material, "CERTIFICATE")
    if not ca:
        raise OptionError(f"option `{option}` holds {_kinds(material)} and no certificate")
    try:
        _load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ca)
    except ConfigurationError as error:
        raise OptionError(f"option `{option}`: {error}") from None
    return ca


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _load_authorities(context: ssl.SSLContext, ca: str) -> None:
    try:
        context.load_verify_locations(cadata=ca)
    except ssl.SSLError as error:
        reason = error.reason or "not valid PEM"
        raise ConfigurationError(f"OpenSSL cannot read the certificate ({reason}): copy it again, whole") from None


def _material(value: object, option: str, *, base64_only: bool = False) -> str:
    """PEM text from PEM text, base64 of PEM or DER, or the path of a file that holds PEM or DER."""
    if not isinstance(value, str):
        raise OptionError(f"option `{option}` must be text, and is {type(value).__name__}")
    value = value.strip()
    if "\n" not in value:
        # Environment variables and hand-written JSON often hold the two characters \n for an end of line.
        value = value.replace("\\r", "").replace("\\n", "\n")
    if "-----BEGIN" in value and not base64_only:
        return value
    decoded = _decode_base64(value)
    if decoded is not None:
        return decoded
    if base64_only:
        raise OptionError(
            f"option `{option}` is not base64 of a certificate: encode the PEM file with `base64 -w0 FILE`"
        )
    if len(value) > 1024 or "\n" in value:
        raise OptionError(
            f"option `{option}` is neither PEM text, nor base64 of it, nor the path of a file: copy it again"
        )
    return _read_file(value, option)


def _decode_base64(value: str) -> str | None:
    # A URI turns the + of base64 into a space; nothing else puts a space inside a line.
    compact = re.sub(r"[\r\n\t]", "", value).replace(" ", "+").replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return _from_bytes(data)


def _from_bytes(data: bytes) -> str | None:
    """PEM text from the bytes of PEM or of DER certificates one after another."""
    if b"-----BEGIN" in data:
        return data.decode("utf-8", "replace")
    pems: list[str] = []
    while data:
        # A DER certificate is a SEQUENCE (0x30) longer than 255 bytes, so its length takes two bytes (0x82) or three.
        if len(data) < 5 or data[0] != 0x30 or data[1] not in {0x82, 0x83}:
            return None
        header = 2 + (data[1] & 0x7F)
        end = header + int.from_bytes(data[2:header], "big")
        if end > len(data):
            return None
        pems.append(ssl.DER_cert_to_PEM_cert(data[:end]))
        data = data[end:]
    return "".join(pems) or None


def _read_file(value: str, option: str) -> str:
    path = Path(value).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        # What is meant to be a path is quoted; a mangled key is not.
        is_path = option != "private_key" and re.fullmatch(r"[\w./~ +@:-]*\.\w{1,8}|[~./].{0,200}", value)
        quoted = f" {value!r}" if is_path else ""
        raise OptionError(
            f"option `{option}` is neither PEM text nor base64 of it, and there is no file{quoted} to read ({reason}): "
            "paste the PEM text, or write a path that exists on this machine"
        ) from None
    pem = _from_bytes(data)
    if pem is None:
        raise OptionError(f"option `{option}`: the file {value!r} holds neither PEM nor DER")
    return pem


def _blocks(pem: str, kind: str) -> str:
    """The blocks whose label ends with ``kind``, one per line, without what stands between them."""
    found = (match for match in _PEM_BLOCK.finditer(pem) if match[1].endswith(kind))
    return "".join(f"-----BEGIN {match[1]}-----\n{_tidy(match[2])}\n-----END {match[1]}-----\n" for match in found)


def _tidy(body: str) -> str:
    """The inside of a PEM block with the line ends that text fields lose put back."""
    if ":" in body:  # the headers of an old encrypted key need their own lines
        return re.sub(r"\r\n?", "\n", body).strip()
    body = re.sub(r"\s+", "", body)
    return "\n".join(body[start : start + 64] for start in range(0, len(body), 64))


def _kinds(pem: str) -> str:
    kinds = sorted({match[1] for match in _PEM_BLOCK.finditer(pem)})
    return f"a {' and a '.join(kinds)}" if kinds else "a PEM text that is cut off"


@contextmanager
def _as_file(content: str) -> Iterator[str]:
    """A path for OpenSSL, which reads client certificates from files only; in memory where the system can."""
    data = content.encode()
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").exists():
        descriptor = os.memfd_create("client-certificate")
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    descriptor, path = tempfile.mkstemp()  # readable by its owner only
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        yield path
    finally:
        Path(path).unlink()
