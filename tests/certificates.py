"""A certificate authority of the tests' own."""

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """A certificate authority for tests, whose files lie in one folder."""

    def __init__(self, folder, name="test CA"):
        self.folder = Path(folder)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key, ca=True, names=())
        self.ca_path = self._write("ca", self.certificate.public_bytes(serialization.Encoding.PEM))

    def _write(self, name, data):
        path = self.folder / f"{name}.pem"
        path.write_bytes(data)
        return str(path)

    def _sign(self, subject, key, *, ca, names):
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name, *, uris=(), dns=("localhost",), file=None):
        """Makes a certificate and its key, and returns the paths; `file` writes over another's."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            *(x509.DNSName(item) for item in dns),
            *(x509.UniformResourceIdentifier(item) for item in uris),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, ca=False, names=names)
        pem = serialization.Encoding.PEM
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return (
            self._write(file or name, certificate.public_bytes(pem)),
            self._write((file or name) + "-key", key.private_bytes(pem, *plain)),
        )

    @staticmethod
    def encrypt(path):
        """Puts a password on a key."""
        key = serialization.load_pem_private_key(Path(path).read_bytes(), None)
        locked = serialization.BestAvailableEncryption(b"password")
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        Path(path).write_bytes(key.private_bytes(*form, locked))
