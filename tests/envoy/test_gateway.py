"""gateway.yaml: who callers are, by certificate or token, and that the server acts on it."""

import base64
import json
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from forebay.v1 import job_service_pb2
from forebay_server.config.tree import JobsConfig
from tests.certificates import Authority
from tests.envoy.conftest import place, tree
from tests.serving import Caller, request_of, row, synthetic
from tests.waiting import eventually

Code = grpc.StatusCode


def part(data):
    """A part of a token."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Issuer:
    """Signs JSON Web Tokens (ES256)."""

    def __init__(self):
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def keys(self):
        """The public key as a JWKS."""
        numbers = self._key.public_key().public_numbers()
        point = {"x": part(numbers.x.to_bytes(32)), "y": part(numbers.y.to_bytes(32))}
        return {"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "1", **point}]}

    def token(self, **claims):
        """A good token; claims may be changed, or left out with None."""
        good = {"iss": "https://issuer.example.org", "aud": "forebay", "exp": int(time.time()) + 600, "tenant": "red"}
        body = {key: value for key, value in (good | claims).items() if value is not None}
        signed = f"{part({'alg': 'ES256', 'typ': 'JWT', 'kid': '1'})}.{part(body)}"
        r, s = utils.decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{part(r.to_bytes(32) + s.to_bytes(32))}"


class Edge:
    """A gateway before a server that believes it, and what belongs to it."""

    def __init__(self, envoy, authority, issuer, server):
        self.envoy, self.authority, self.issuer, self.server = envoy, authority, issuer, server
        self._callers = []

    def caller(self, certificate=None):
        """A gRPC caller, with a certificate and its key or without."""
        files = [None, None] if certificate is None else [Path(path).read_bytes() for path in reversed(certificate)]
        credentials = grpc.ssl_channel_credentials(Path(self.authority.ca_path).read_bytes(), *files)
        self._callers.append(Caller(self.envoy.address, credentials))
        return self._callers[-1]

    def close(self):
        for caller in self._callers:
            caller.channel.close()

    def rest(self, path, token=None, certificate=None):
        """A GET over HTTPS: status and JSON."""
        context = ssl.create_default_context(cafile=self.authority.ca_path)
        if certificate:
            context.load_cert_chain(*certificate)
        request = urllib.request.Request(f"https://{self.envoy.address}{path}")
        if token:
            request.add_header("authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


@pytest.fixture
def edge(replica, start_envoy, tmp_path):
    """A gateway."""
    authority, issuer = Authority(tmp_path), Issuer()
    certificate, key = authority.issue("server")
    server = replica(synthetic(), trusted=True, jobs=JobsConfig(store="memory:"))
    config = tree("gateway.yaml")
    place(config, {"forebay": [server.addresses["public"]]})
    made = Edge(
        start_envoy(
            {"gateway.yaml": config, "certificate.yaml": tree("certificate.yaml")},
            {
                "jwks.json": json.dumps(issuer.keys).encode(),
                "ca.pem": Path(authority.ca_path).read_bytes(),
                "server.pem": Path(certificate).read_bytes(),
                "server-key.pem": Path(key).read_bytes(),
            },
        ),
        authority,
        issuer,
        server,
    )
    yield made
    made.close()


def bearer(token, *more):
    """Metadata with a token."""
    return (("authorization", f"Bearer {token}"), *more)


def submit(caller, metadata=()):
    """Hands over a job."""
    submitted = job_service_pb2.SubmitRequest(request=request_of("model", row(1)))
    return caller.jobs.Submit(submitted, timeout=5, metadata=metadata).job.id


def listed(caller, metadata=()):
    """The jobs that a caller may see."""
    jobs = caller.jobs.ListJobs(job_service_pb2.ListJobsRequest(), timeout=5, metadata=metadata).jobs
    return [job.id for job in jobs]


def refused(call, *arguments):
    """The code with which a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    return caught.value.code()


def test_tokens_are_tenants(edge):
    """The claim `tenant` decides whose jobs a caller sees, whatever the caller says of itself."""
    caller, issuer = edge.caller(), edge.issuer
    red, blue = bearer(issuer.token()), bearer(issuer.token(tenant="blue"))
    job = submit(caller, red)
    assert (listed(caller, red), listed(caller, blue)) == ([job], [])
    forged = bearer(issuer.token(tenant="blue"), ("x-forebay-tenant", "red"), ("x-forebay-certificate", "red"))
    assert listed(caller, forged) == []
    assert edge.rest("/v1/jobs", issuer.token())[1]["jobs"][0]["id"] == job


def test_tokens_that_are_not_good(edge):
    """No token, a foreign signature, another issuer or audience, or one that has expired: UNAUTHENTICATED, 401."""
    caller, issuer = edge.caller(), edge.issuer
    bad = {
        "foreign": Issuer().token(),
        "issuer": issuer.token(iss="https://elsewhere.example.org"),
        "audience": issuer.token(aud="others"),
        "expired": issuer.token(exp=int(time.time()) - 3600),
        "endless": issuer.token(exp=None),
        "nonsense": "nonsense",
    }
    for what, token in bad.items():
        assert refused(listed, caller, bearer(token)) in {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}, what
        status, body = edge.rest("/v1/jobs", token)
        assert (status, body["code"]) in {(401, 16), (403, 7)}, what
    assert refused(listed, caller) is Code.UNAUTHENTICATED
    assert refused(listed, caller, (("x-forebay-tenant", "red"),)) is Code.UNAUTHENTICATED
    assert refused(listed, caller, (("x-forebay-certificate", "spiffe://example.org/red"),)) is Code.UNAUTHENTICATED
    assert edge.rest("/v1/jobs")[0] == 401
    assert listed(caller, bearer(issuer.token())) == []


def test_a_token_without_a_tenant(edge):
    """Who is known to the issuer but has no name here is not let in under another."""
    nameless = edge.issuer.token(tenant=None)
    assert refused(listed, edge.caller(), bearer(nameless)) is Code.PERMISSION_DENIED
    forged = bearer(nameless, ("x-forebay-tenant", "red"))
    assert refused(listed, edge.caller(), forged) is Code.PERMISSION_DENIED
    other = edge.caller(edge.authority.issue("other", uris=["spiffe://elsewhere.org/search"]))
    assert refused(listed, other, bearer(nameless)) is Code.PERMISSION_DENIED
    assert edge.rest("/v1/jobs", nameless)[0] == 403


def test_a_token_can_not_pass_for_a_certificate(edge):
    """The issuer of tokens can't give out the tenants of services."""
    token = edge.issuer.token(tenant="spiffe://example.org/search")
    assert refused(listed, edge.caller(), bearer(token)) is Code.PERMISSION_DENIED


def test_certificates_are_tenants(edge, call):
    """A SPIFFE id is a tenant of its own; it needs no token, and a token does not change it."""
    search = edge.caller(edge.authority.issue("search", uris=["spiffe://example.org/search"]))
    ads = edge.caller(edge.authority.issue("ads", uris=["spiffe://example.org/ads"]))
    job = submit(search)
    assert (listed(search), listed(ads)) == ([job], [])
    assert listed(ads, (("x-forebay-tenant", "spiffe://example.org/search"),)) == []
    assert listed(search, bearer(edge.issuer.token())) == [job]
    assert listed(call(edge.server), (("x-forebay-tenant", "spiffe://example.org/search"),)) == [job]


def test_a_certificate_of_another_authority(edge, tmp_path):
    """It gets no connection, even with a good token."""
    folder = tmp_path / "strange"
    folder.mkdir()
    strange = Authority(folder).issue("search", uris=["spiffe://example.org/search"])
    assert refused(listed, edge.caller(strange), bearer(edge.issuer.token())) is Code.UNAVAILABLE
    with pytest.raises((urllib.error.URLError, OSError)):
        edge.rest("/v1/jobs", edge.issuer.token(), strange)


@pytest.mark.parametrize(
    "uris", [["spiffe://elsewhere.org/search"], ["spiffe://example.org/a", "spiffe://example.org/b"], []]
)
def test_a_certificate_for_somebody_else(edge, uris):
    """Of our authority, but not one of the names that count, or more than one: as if it had not been shown."""
    caller = edge.caller(edge.authority.issue("other", uris=uris))
    assert refused(listed, caller) is Code.UNAUTHENTICATED
    job = submit(edge.caller(), bearer(edge.issuer.token()))
    assert listed(caller, bearer(edge.issuer.token())) == [job]


def test_a_new_certificate_without_a_restart(edge):
    """New connections see a certificate that was moved into place; Envoy goes on."""

    def serial():
        host, _, port = edge.envoy.address.rpartition(":")
        return ssl.get_server_certificate((host, int(port)))

    before = serial()
    for name, path in zip(("server.pem", "server-key.pem"), edge.authority.issue("next"), strict=True):
        (edge.envoy.folder / ".new").write_bytes(Path(path).read_bytes())
        (edge.envoy.folder / ".new").rename(edge.envoy.folder / name)
    edge.envoy.write("certificate.yaml", tree("certificate.yaml"))
    eventually(lambda: serial() != before, "the new certificate")
    assert listed(edge.caller(), bearer(edge.issuer.token())) == []
