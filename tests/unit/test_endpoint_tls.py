"""Certificates and keys in every form people have them in."""

from __future__ import annotations

import base64
import ssl

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.exceptions import ConfigurationError

PASSPHRASE = "canary-pass é"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture(scope="module")
def other_ca():
    return trustme.CA()


@pytest.fixture(scope="module")
def leaf(ca):
    return ca.issue_cert("client@example.com")


@pytest.fixture(scope="module")
def pem(ca):
    return ca.cert_pem.bytes().decode()


@pytest.fixture(scope="module")
def certificate(leaf):
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems).decode()


@pytest.fixture(scope="module")
def key(leaf):
    return leaf.private_key_pem.bytes().decode()


@pytest.fixture(scope="module")
def encrypted(key):
    loaded = load_pem_private_key(key.encode(), None)
    return {
        "pkcs8": loaded.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE.encode())
        ).decode(),
        "traditional": loaded.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(PASSPHRASE.encode())
        ).decode(),
    }


def make(**options: object) -> Endpoint:
    return Endpoint.from_mapping({"hosts": "h", "tls": True, **options}, where="connection 'x'")


def refused(*words: str, **options: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(**options)
    for word in words:
        assert word in str(caught.value)
    assert "PRIVATE KEY-----" not in str(caught.value)
    assert PASSPHRASE not in str(caught.value)


def authorities(endpoint: Endpoint) -> int:
    return len(endpoint.ssl_context().get_ca_certs())


def test_a_ca_in_every_form_is_the_same_ca(ca, pem, tmp_path):
    der = ssl.PEM_cert_to_DER_cert(pem)
    (tmp_path / "ca.pem").write_text(pem)
    (tmp_path / "ca.der").write_bytes(der)
    (tmp_path / "comment.pem").write_text(f"Some issuer\n=====\n{pem}")
    forms = {
        "pem": {"ca_certificate": pem},
        "crlf": {"ca_certificate": pem.replace("\n", "\r\n")},
        "escaped line ends": {"ca_certificate": pem.replace("\n", "\\n")},
        "one line": {"ca_certificate": pem.replace("\n", " ")},
        "indented": {"ca_certificate": pem.replace("\n", "\n    ")},
        "base64 of pem": {"ca_certificate": b64(pem.encode())},
        "base64 of der": {"ca_certificate": b64(der)},
        "base64 option, pem": {"ca_certificate_base64": b64(pem.encode())},
        "base64 option, der": {"ca_certificate_base64": b64(der)},
        "base64 in lines": {"ca_certificate_base64": base64.encodebytes(pem.encode()).decode()},
        "base64 url-safe": {"ca_certificate_base64": base64.urlsafe_b64encode(der).decode().rstrip("=")},
        "base64 through a form-encoded URI": {"ca_certificate_base64": b64(der).replace("+", " ")},
        "path of pem": {"ca_certificate": str(tmp_path / "ca.pem")},
        "path of der": {"ca_certificate": str(tmp_path / "ca.der")},
        "with a comment": {"ca_certificate": str(tmp_path / "comment.pem")},
    }
    made = {name: make(**options) for name, options in forms.items()}
    assert {endpoint.tls.ca for endpoint in made.values()} == {made["pem"].tls.ca}
    assert all(authorities(endpoint) == 1 for endpoint in made.values())
    assert made["path of pem"].tls.ca.count("BEGIN CERTIFICATE") == 1  # the text, not the path: it travels


def test_several_authorities(ca, other_ca, pem):
    both = pem + other_ca.cert_pem.bytes().decode()
    der = b"".join(ssl.PEM_cert_to_DER_cert(one.cert_pem.bytes().decode()) for one in (ca, other_ca))
    assert authorities(make(ca_certificate=both)) == 2
    assert authorities(make(ca_certificate_base64=b64(both.encode()))) == 2
    assert authorities(make(ca_certificate_base64=b64(der))) == 2


def test_no_ca_is_the_systems(monkeypatch, pem, tmp_path):
    (tmp_path / "system.pem").write_text(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    assert authorities(make()) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("/no/such/file.pem", ("neither PEM text nor base64", "'/no/such/file.pem'", "No such file")),
        ("nothing", ("neither PEM",)),
        ("-----BEGIN CERTIFICATE-----\nMIIB", ("cut off",)),
        (
            "-----BEGIN CERTIFICATE-----\nnot!base64\n-----END CERTIFICATE-----",
            ("OpenSSL cannot read", "copy it again"),
        ),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", ("OpenSSL cannot read",)),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", ("a PUBLIC KEY and no certificate",)),
        ("some\nlines", ("neither PEM text, nor base64",)),
        ("x" * 2000, ("neither PEM text, nor base64",)),
        (7, ("must be text",)),
        ({"a": 1}, ("must be text",)),
        ("/", ("neither PEM", "directory")),
    ],
)
def test_a_ca_that_is_none(value, words):
    refused("`ca_certificate`", *words, ca_certificate=value)


def test_a_ca_file_that_holds_something_else(tmp_path):
    (tmp_path / "x.pem").write_bytes(b"\0\1\2")
    refused("holds neither PEM nor DER", ca_certificate=str(tmp_path / "x.pem"))


def test_a_ca_in_the_base64_option_that_is_not_base64(pem):
    refused("`ca_certificate_base64`", "base64 -w0", ca_certificate_base64=pem)
    refused("`ca_certificate_base64`", "base64 -w0", ca_certificate_base64="AAAA")
    refused("both", ca_certificate_base64=b64(pem.encode()), ca_certificate=pem)


def test_ca_and_no_verification(pem):
    refused("`verify` is false", ca_certificate=pem, verify=False)


@pytest.mark.parametrize("option", ["ca_certificate", "client_certificate"])
def test_a_key_in_the_place_of_a_certificate(option, key):
    refused(f"`{option}`", "PRIVATE KEY and no certificate", **{option: key})


def test_client_certificate(certificate, key, tmp_path):
    (tmp_path / "c.pem").write_text(certificate)
    (tmp_path / "k.pem").write_text(key)
    (tmp_path / "both.pem").write_text(key + certificate)
    made = [
        make(client_certificate=certificate, private_key=key),
        make(client_certificate=str(tmp_path / "c.pem"), private_key=str(tmp_path / "k.pem")),
        make(client_certificate=b64(certificate.encode()), private_key=b64(key.encode())),
        make(client_certificate=str(tmp_path / "both.pem")),
        make(client_certificate=certificate + key),
    ]
    assert len({endpoint.tls for endpoint in made}) == 1
    for endpoint in made:
        assert endpoint.ssl_context() is not None
        assert Endpoint.from_uri(endpoint.to_uri()) == endpoint
        assert Endpoint.from_mapping(endpoint.to_mapping()) == endpoint


@pytest.mark.parametrize("form", ["pkcs8", "traditional"])
def test_key_with_passphrase(form, certificate, encrypted):
    made = make(client_certificate=certificate, private_key=encrypted[form], private_key_passphrase=PASSPHRASE)
    assert made.ssl_context() is not None
    assert Endpoint.from_uri(made.to_uri()) == made
    assert PASSPHRASE not in repr(made) + repr(made.tls)
    refused(
        "private_key_passphrase` is wrong",
        client_certificate=certificate,
        private_key=encrypted[form],
        private_key_passphrase="wrong",
    )
    # and no question on the terminal
    refused("encrypted", "`private_key_passphrase`", client_certificate=certificate, private_key=encrypted[form])


def test_client_certificate_contradictions(certificate, key, other_ca):
    foreign = other_ca.issue_cert("x@example.com").private_key_pem.bytes().decode()
    refused("`private_key`", "without `client_certificate`", private_key=key)
    refused("`client_certificate`", "without `private_key`", client_certificate=certificate)
    refused("`private_key_passphrase`", "without", private_key_passphrase=PASSPHRASE)
    refused("does not belong", client_certificate=certificate, private_key=foreign)
    refused("and no private key", client_certificate=certificate, private_key=certificate)
    refused("cannot be used", client_certificate=certificate, private_key=key.replace("M", "N", 3))
    refused("1024 bytes", client_certificate=certificate, private_key=key, private_key_passphrase="x" * 1025)


def test_external(certificate, key):
    client = {"client_certificate": certificate, "private_key": key, "sasl_mechanism": "external"}
    endpoint = make(**client)
    assert (endpoint.username, endpoint.password) == ("", "")
    assert endpoint.parameters()[0].credentials.TYPE == "EXTERNAL"
    assert endpoint.describe() == "amqps://h:5671/%2F"
    assert Endpoint.from_uri(endpoint.to_uri()) == endpoint
    assert Endpoint.from_mapping(endpoint.to_mapping()) == endpoint
    refused("EXTERNAL", "remove user name", **client, username="u", password="p")


def test_a_client_key_in_der_is_refused_with_words(certificate, key):
    der = load_pem_private_key(key.encode(), None).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    refused("`private_key`", client_certificate=certificate, private_key=b64(der))


def test_contexts(pem):
    strict = make(ca_certificate=pem, minimum_tls_version="1.3").ssl_context()
    assert strict.minimum_version is ssl.TLSVersion.TLSv1_3
    assert strict.check_hostname
    assert strict.verify_mode is ssl.CERT_REQUIRED
    unchecked = make(ca_certificate=pem, check_hostname=False).ssl_context()
    assert not unchecked.check_hostname
    assert unchecked.verify_mode is ssl.CERT_REQUIRED
    open_to_all = make(verify=False).ssl_context()
    assert open_to_all.verify_mode is ssl.CERT_NONE
    assert make().ssl_context().minimum_version is ssl.TLSVersion.TLSv1_2


def test_without_memory_files_a_private_temporary_one_is_used(monkeypatch, certificate, key, tmp_path):
    monkeypatch.delattr("os.memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert make(client_certificate=certificate, private_key=key).ssl_context() is not None
    assert not list(tmp_path.iterdir())
