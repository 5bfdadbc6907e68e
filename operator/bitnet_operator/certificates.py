"""Certificates that the operator makes for its own webhook: self-signed, and trusted by their name alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = timedelta(days=365)
RENEWED_BEFORE = timedelta(days=30)
"""How long before its end a certificate is replaced."""
_SKEW = timedelta(hours=1)
"""By how much the API server's clock may be behind."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    def serves(self, names: Sequence[str], now: datetime) -> bool:
        """Whether it is for these names and not near its end. False too where it is no certificate."""
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate)
            alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except (ValueError, x509.ExtensionNotFound):
            return False
        named = set(alternatives.value.get_values_for_type(x509.DNSName))
        return named >= set(names) and now < certificate.not_valid_after_utc - RENEWED_BEFORE


def make_key_pair(names: Sequence[str], now: datetime) -> KeyPair:
    """A new pair for servers of these DNS names, its own authority, on the curve P-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name has at most 64 characters, and nobody reads it: names are the alternatives.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bitnet-operator webhook")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName(map(x509.DNSName, names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # Two in a row have one name: by these a client finds the one that signed.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
