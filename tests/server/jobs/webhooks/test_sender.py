"""From the outbox to the receiver: what is sent, tried again, given up, and what survives."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import structlog
from standardwebhooks.webhooks import Webhook

from forebay_server.config.tree import WebhooksConfig
from forebay_server.errors import ConfigError, StoreUnavailable
from forebay_server.jobs.states import JobState
from forebay_server.jobs.webhooks import sender as module
from forebay_server.jobs.webhooks.sender import PARALLEL, SHARE, make_sender
from tests.server.jobs.webhooks.conftest import Outbox, RawReceiver, Receiver
from tests.waiting import eventually

KEY = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
OTHER = base64.b64encode(b"fedcba9876543210fedcba9876543210").decode()


@pytest.fixture
def start(outbox, monkeypatch):
    """Starts senders, and closes them."""
    monkeypatch.setenv("HOOK_SECRET", f"whsec_{KEY} whsec_{OTHER}")
    monkeypatch.setattr(module, "POLL", 0.01)
    senders = []

    def start(*allow, outbox=outbox, **settings):
        secrets = {"first": "env:HOOK_SECRET"}
        config = WebhooksConfig(allow=list(allow), **({"allow_private": True, "secrets": secrets} | settings))
        sender = make_sender(config, outbox.ask)
        sender.start()
        senders.append(sender)
        return sender

    yield start
    for sender in senders:
        sender.close(1.0)
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("forebay-webhook")])


@pytest.fixture
def logged():
    """What is logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def test_a_message_arrives(start, outbox, receiver):
    """It says what happened, a receiver with either secret can verify it, and it leaves the outbox."""
    start(receiver.origin)
    job = outbox.add(f"{receiver.origin}/done?x=1")
    eventually(outbox.empty)

    (received,) = receiver.received
    assert received.path == "/done?x=1"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["webhook-id"] == f"msg_{job}"
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 5
    for key in (KEY, OTHER):
        assert Webhook(key).verify(received.body, received.headers)["data"]["id"] == job
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(base64.b64encode(b"x" * 32).decode()).verify(received.body, received.headers)
    assert outbox.dealt_with == [job]


def test_it_is_tried_again(start, outbox, receiver):
    """What is refused comes again after a growing pause: the same id and body, a new time and signature."""
    receiver.answers.extend([(500, {}), (302, {"Location": "/other"}), (429, {})])
    start(receiver.origin)
    outbox.add(receiver.origin)
    for tries in range(1, 4):
        eventually(lambda tries=tries: len(outbox.delays) == tries)
        outbox.forward(100.0)
    eventually(outbox.empty)

    assert len(receiver.received) == 4
    assert len({(each.headers["webhook-id"], each.body) for each in receiver.received}) == 1
    assert all(0 <= delay <= bound for delay, bound in zip(outbox.delays, (10.0, 30.0, 90.0), strict=True))
    for each in receiver.received:
        Webhook(KEY).verify(each.body, each.headers)


def test_retry_after_is_honoured(start, outbox, receiver):
    """The pause is at least what the receiver asked for, and at most half a day and a tenth."""
    receiver.answers.extend([(503, {"Retry-After": "1000"}), (503, {"Retry-After": "99999999"})])
    start(receiver.origin)
    outbox.add(receiver.origin)
    eventually(lambda: len(outbox.delays) == 1)
    outbox.forward(1200.0)
    eventually(lambda: len(outbox.delays) == 2)

    assert 1000.0 <= outbox.delays[0] <= 1100.0
    assert 43_200.0 <= outbox.delays[1] <= 43_200.0 * 1.1


def test_gone(start, outbox, receiver, logged):
    """410 ends the message at once, with a line in the log that shows neither path nor query."""
    receiver.answers.append((410, {}))
    start(receiver.origin)
    job = outbox.add(f"{receiver.origin}/secret-path?token=secret")
    eventually(outbox.empty)

    assert outbox.delays == []
    assert logged == [
        {
            "event": "webhook_given_up",
            "log_level": "warning",
            "job": job,
            "target": receiver.origin,
            "tries": 1,
            "reason": "HTTP status 410",
        }
    ]


def test_the_last_try(start, outbox, receiver, logged):
    """After so many tries a message is given up, those before a restart counted."""
    receiver.answers.extend([(500, {})] * 2)
    start(receiver.origin, max_tries=5)
    outbox.add(receiver.origin, tries=3)
    eventually(lambda: len(outbox.delays) == 1)
    outbox.forward(1000.0)
    eventually(outbox.empty)

    assert len(receiver.received) == 2
    given_up = [line for line in logged if line["event"] == "webhook_given_up"]
    assert [(line["tries"], line["reason"]) for line in given_up] == [(5, "HTTP status 500")]


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED])
def test_every_end_is_told(start, outbox, receiver, state):
    """Not only success."""
    start(receiver.origin)
    outbox.add(receiver.origin, state=state)
    eventually(outbox.empty)
    assert json.loads(receiver.received[0].body)["type"] == f"job.{state.name.lower()}"


@pytest.mark.parametrize(
    ("url", "secret", "reason"),
    [
        ("http://127.0.0.1:9/x", "first", "the URL is not among the targets that the operator allows"),
        ("ORIGIN/a/../b", "first", "the URL must not have dots"),
        ("ORIGIN", "other", "there is no secret 'other'"),
    ],
)
def test_what_the_settings_no_longer_allow(start, outbox, receiver, logged, url, secret, reason):
    """The list and the secrets hold when a message is sent, not only when its job was submitted."""
    start(receiver.origin, max_tries=1)
    outbox.add(url.replace("ORIGIN", receiver.origin), secret=secret)
    eventually(outbox.empty)
    assert receiver.received == []
    assert logged[-1]["reason"].startswith(reason)


def test_without_targets_what_is_left_is_given_up(start, outbox, logged):
    """A server whose operator has switched webhooks off lets go of old messages, so that their jobs can be deleted."""
    start(max_tries=1)
    outbox.add("https://hooks.example.com")
    eventually(outbox.empty)
    assert logged[-1]["reason"] == "the URL is not allowed: this server sends no webhooks"


def test_private_addresses_are_guarded(start, outbox, receiver, logged):
    """By default a name that means this machine is not connected to; the receiver is there (control: above)."""
    start(f"http://localhost:{receiver.port}", allow_private=False, max_tries=1)
    outbox.add(f"http://localhost:{receiver.port}/")
    eventually(outbox.empty)
    assert receiver.received == []
    assert "which is not public" in logged[-1]["reason"]


def test_allowed(start, receiver):
    """A job is told at once what is wrong with its webhook, by the name of the field."""
    sender = start("https://hooks.example.com/a", "https://10.0.0.1", allow_private=False)
    assert sender.allowed("https://hooks.example.com/a/b", "first") is None
    assert sender.allowed("https://hooks.example.com/ab", "first") == (
        "webhook.url",
        "is not among the targets that the operator allows",
    )
    assert sender.allowed("https://10.0.0.1/", "first") == ("webhook.url", "is an address that is not public")
    assert sender.allowed("https://hooks.example.com/a", "") == (
        "webhook.secret",
        "is not the name of a secret that the operator has configured",
    )


def test_a_target_that_hangs_is_left_alone(start, outbox, receiver, closing, logged):
    """Its messages are put back without waiting for it, and those of others arrive meanwhile."""
    dead = closing(RawReceiver(lambda connection, _: time.sleep(10)))
    start(receiver.origin, dead.origin, timeout_s=0.5)
    outbox.add(dead.origin, count=100)
    eventually(lambda: len(outbox.delays) >= PARALLEL)
    outbox.add(receiver.origin, count=20)
    eventually(lambda: len(outbox.dealt_with) == 20)
    eventually(lambda: len(outbox.delays) >= 100)  # of the first ones some may have had their second try
    assert dead.connections <= 2 * PARALLEL  # Not 100, of which those behind would have had to wait for each 8.
    (held,) = [line for line in logged if line["event"] == "webhook_target_held"]
    assert (held["target"], held["reason"]) == (dead.origin, "no answer in 0.5 s")


def test_closing_does_not_wait_for_a_target_that_hangs(start, outbox, closing):
    """What is under way is cut, and due again at once."""
    dead = closing(RawReceiver(lambda connection, _: time.sleep(10)))
    sender = start(dead.origin)
    outbox.add(dead.origin)
    eventually(lambda: dead.connections == 1)
    began = time.monotonic()
    sender.close(0.1)
    assert time.monotonic() - began < 1.0
    assert outbox.delays == [0.0]
    assert not outbox.dealt_with


def test_closing_waits_for_what_is_under_way(start, outbox, receiver):
    """A receiver that answers in time is heard, and no other message is begun."""
    gate, entered = threading.Event(), threading.Event()

    def before():
        entered.set()
        gate.wait(10)

    receiver.before = before
    sender = start(receiver.origin)
    outbox.add(receiver.origin)
    assert entered.wait(10)
    threading.Timer(0.1, gate.set).start()
    sender.close(5.0)
    assert len(outbox.dealt_with) == 1
    outbox.add(receiver.origin)
    time.sleep(0.1)
    assert len(receiver.received) == 1


def test_it_goes_on_when_the_store_does(start, outbox, receiver, logged):
    """A store that does not answer is asked again; what it could not note is sent once more at most."""
    sender = start(receiver.origin)
    receiver.before = lambda: setattr(outbox, "failure", StoreUnavailable("down"))
    outbox.add(receiver.origin)
    eventually(lambda: receiver.received)
    time.sleep(0.05)
    assert not outbox.empty()
    outbox.failure = None
    sender.wake()
    eventually(outbox.empty)
    assert len(receiver.received) == 1


def test_a_fault_of_its_own_does_not_end_it(start, outbox, receiver, logged, monkeypatch):
    """Whatever happens in a thread, the next message is sent."""
    start(receiver.origin)
    outbox.failure = RuntimeError("a fault")
    eventually(lambda: [line for line in logged if line["event"] == "webhook_outbox_failed"])
    outbox.failure = None
    with monkeypatch.context() as patched:
        patched.setattr(module.message, "body", lambda job: 1 / 0)
        outbox.add(receiver.origin)
        eventually(lambda: [line for line in logged if line["event"] == "webhook_failed"])
    job = outbox.add(receiver.origin)
    eventually(lambda: outbox.dealt_with == [job])


def test_wake(outbox, receiver, monkeypatch, start):
    """A job that finishes is told of at once; many that finish are few looks."""
    monkeypatch.setattr(module, "POLL", 60.0)
    sender = start(receiver.origin)
    eventually(lambda: outbox.looks == 1)
    outbox.add(receiver.origin)
    time.sleep(0.05)
    assert receiver.received == []
    sender.wake()
    eventually(outbox.empty)

    before, end = outbox.looks, time.monotonic() + 0.5
    while time.monotonic() < end:
        sender.wake()
    assert outbox.looks - before <= 0.5 / module._GATHER + 2


def test_little_processor_time(start, outbox, receiver):
    """However many messages wait, all threads together take no more than their share of a core."""
    start(receiver.origin)
    outbox.add(receiver.origin, count=1500)
    eventually(lambda: receiver.received)
    began, cpu = time.monotonic(), threads_cpu()
    time.sleep(1.0)
    used = (threads_cpu() - cpu) / (time.monotonic() - began)
    assert not outbox.empty(), "it was busy all the time"
    assert used < SHARE * 1.5


def threads_cpu():
    """Processor seconds of the threads that send."""
    total = 0
    for thread in threading.enumerate():
        if thread.name.startswith("forebay-webhook-"):
            fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def test_secrets_do_not_show(start, outbox, receiver, logged):
    """Neither in what is logged, nor in any object's picture of itself."""
    receiver.answers.extend([(500, {})] * 3)
    sender = start(receiver.origin, max_tries=1)
    outbox.add(receiver.origin)
    eventually(outbox.empty)
    shown = f"{logged!r} {sender!r} {vars(sender)!r}"
    for key in (KEY, OTHER, base64.b64decode(KEY).decode()):
        assert key not in shown


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"allow": ["nonsense"]}, "jobs.webhooks.allow: 'nonsense' must have the form"),
        ({"secrets": {"first": "env:NOT_THERE"}}, "jobs.webhooks.secrets.first: the environment has no variable"),
    ],
)
def test_wrong_settings(settings, sentence):
    """They end the start with one sentence."""
    with pytest.raises(ConfigError, match=sentence):
        make_sender(WebhooksConfig(**settings), lambda _: None)


def test_the_http_client_is_imported_only_with_targets():
    """A server without webhooks does not need the extra."""
    code = """
import sys
from forebay_server.config.tree import WebhooksConfig
from forebay_server.jobs.webhooks.sender import make_sender
make_sender(WebhooksConfig(), lambda _: None)
assert "httpcore" not in sys.modules
make_sender(WebhooksConfig(allow=["https://hooks.example.com"]), lambda _: None)
assert "httpcore" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


KILLED = """
import sys, time
from pathlib import Path
from forebay_server.config.tree import WebhooksConfig
from forebay_server.jobs.webhooks.sender import make_sender
from tests.server.jobs.webhooks.conftest import Outbox
origin, path = sys.argv[1:]
outbox = Outbox(Path(path))
outbox.add(origin)
config = WebhooksConfig(allow=[origin], allow_private=True, secrets={"first": "env:HOOK_SECRET"})
make_sender(config, outbox.ask).start()
end = time.monotonic() + 20
while time.monotonic() < end and not outbox.empty():
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("point", "before", "after"),
    [("webhook.taken", 0, 1), ("webhook.sent", 1, 2), ("webhook.recorded", 1, 1), ("", 1, 1)],
)
def test_a_crash_loses_no_message(start, receiver, closing, monkeypatch, tmp_path, point, before, after):
    """Killed at each fail point: another process sends what was not noted, under the same id. (Control: no death.)"""
    monkeypatch.setenv("HOOK_SECRET", f"whsec_{KEY}")
    path = tmp_path / "killed.db"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, receiver.origin, str(path)],
        env={**os.environ, "FOREBAY_FAILPOINT": point},
        cwd=Path(__file__).parents[4],
    )
    try:
        assert process.wait(30) == (-signal.SIGKILL if point else 0)
    finally:
        process.kill()
    assert len(receiver.received) == before

    survivor = closing(Outbox(path))
    start(receiver.origin, outbox=survivor)
    eventually(lambda: survivor.looks >= 3)
    assert len(receiver.received) == before, "a message that was taken is nobody else's for a while"
    survivor.forward(60.0)
    eventually(lambda: len(receiver.received) == after)
    looks = survivor.looks
    eventually(lambda: survivor.looks >= looks + 3)
    assert len(receiver.received) == after
    assert len({(each.headers["webhook-id"], each.body) for each in receiver.received}) == 1


def test_over_tls(start, outbox, closing, authority, monkeypatch):
    """Authorities of the operator's own come with SSL_CERT_FILE, as everywhere."""
    monkeypatch.setenv("SSL_CERT_FILE", authority.ca_path)
    secure = closing(Receiver(authority.issue("hook", dns=["hook.example.com"])))
    start(secure.origin)
    outbox.add(secure.origin)
    eventually(outbox.empty)
    Webhook(KEY).verify(secure.received[0].body, secure.received[0].headers)
