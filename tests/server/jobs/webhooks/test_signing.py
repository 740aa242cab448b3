"""Signatures and secrets."""

import base64
import hashlib
import hmac
import os
import time

import pytest
from standardwebhooks.webhooks import Webhook

from forebay_server.errors import ConfigError
from forebay_server.jobs.webhooks.signing import Secret, read_secrets

KEY = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LONG = "plain text of more than enough bytes"


def test_the_published_example():
    """The headers for the example that the libraries of Standard Webhooks share."""
    headers = Secret([base64.b64decode(KEY)]).headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_every_secret_signs(monkeypatch):
    """While secrets are changed, receivers that know any one of them can verify."""
    monkeypatch.setenv("HOOK", f"whsec_{KEY}\n{LONG.replace(' ', '-')}")
    headers = read_secrets({"first": "env:HOOK"})["first"].headers("msg_1", 1_700_000_000, b"{}")

    signed = b"msg_1.1700000000.{}"
    keys = base64.b64decode(KEY), LONG.replace(" ", "-").encode()
    expected = [base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys]
    assert headers["webhook-signature"] == f"v1,{expected[0]} v1,{expected[1]}"


def test_the_reference_implementation_verifies_both(monkeypatch):
    """The library for receivers accepts the message with either secret, and not a changed one."""
    other = base64.b64encode(os.urandom(32)).decode()
    monkeypatch.setenv("HOOK", f"whsec_{KEY} whsec_{other}")
    body = b'{"type":"job.succeeded"}'
    headers = read_secrets({"first": "env:HOOK"})["first"].headers("msg_1", int(time.time()), body)

    for secret in (KEY, other):
        assert Webhook(f"whsec_{secret}").verify(body, headers) == {"type": "job.succeeded"}
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(KEY).verify(body + b" ", headers)


def test_secrets_are_not_shown(tmp_path):
    """Neither a secret nor its collection shows a key."""
    path = tmp_path / "secret"
    path.write_text(f"whsec_{KEY}\n")
    secrets = read_secrets({"first": f"file:{path}"})

    shown = f"{secrets!r} {secrets['first']!s}"
    assert shown == "{'first': <Secret of 1 key(s)>} <Secret of 1 key(s)>"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("env:NOWHERE", "the environment has no variable 'NOWHERE'"),
        ("env:EMPTY", "env:EMPTY is empty"),
        ("env:SHORT", "env:SHORT has 5 bytes, and a secret needs at least 24"),
        ("env:SHORT64", "env:SHORT64 has 23 bytes, and a secret needs at least 24"),
        ("env:BAD64", "what follows whsec_ in env:BAD64 is not base64"),
        ("file:FOLDER/none", "the file FOLDER/none can't be read: No such file or directory"),
        ("file:FOLDER", "the file FOLDER can't be read: Is a directory"),
        ("file:FOLDER/binary", "the file FOLDER/binary is not text"),
        ("file:FOLDER/large", "the file FOLDER/large is too large for a secret"),
        (f"whsec_{KEY}", "expected env:NAME or file:PATH; the secret itself does not belong there"),
        (LONG, "expected env:NAME or file:PATH; the secret itself does not belong there"),
    ],
)
def test_wrong_secrets(tmp_path, monkeypatch, source, sentence):
    """A secret that can't be used ends the start with a sentence that does not hold it."""
    monkeypatch.setenv("EMPTY", " \n")
    monkeypatch.setenv("SHORT", "short")
    monkeypatch.setenv("SHORT64", "whsec_" + base64.b64encode(b"x" * 23).decode())
    monkeypatch.setenv("BAD64", "whsec_????????????????????????????????")
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "binary").write_bytes(b"\xff" * 40)
    (tmp_path / "large").write_bytes(b"x" * 65_537)

    with pytest.raises(ConfigError) as caught:
        read_secrets({"first": source.replace("FOLDER", str(tmp_path))})
    assert str(caught.value).replace(str(tmp_path), "FOLDER") == f"jobs.webhooks.secrets.first: {sentence}"
    assert KEY not in str(caught.value)
    assert LONG not in str(caught.value)
