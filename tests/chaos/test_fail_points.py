"""kill -9 at every place that matters, on both stores: nothing that was acknowledged is lost, or happens twice."""

import base64
import itertools
import json
import signal
from collections import defaultdict
from pathlib import Path

import psycopg
import pytest

from forebay.v1 import job_pb2
from forebay_server.jobs.failpoints import NAMES
from forebay_server.jobs.payloads import LARGE
from tests.chaos.audited import SLOW
from tests.server.jobs.webhooks.conftest import Receiver
from tests.waiting import eventually

FILES = ("payload.", "purge.file")
"""Places that only a store with files has."""
LARGE_ROWS = 40_000
"""Request and outcome are larger than `LARGE`."""
RUNS = 3
"""A job may be in flight at a death, and again at the death of the one that takes it over; then all jobs end."""


@pytest.fixture
def receiver():
    """Who gets the webhooks."""
    opened = Receiver()
    yield opened
    opened.close()


class Trial:
    """A server under load, led to its death at one place after another; its successor leaves nothing undone."""

    def __init__(self, victim, oracle, receiver, monkeypatch):
        monkeypatch.setenv("HOOK_SECRET", "whsec_" + base64.b64encode(bytes(32)).decode())
        self.victim = victim
        self.oracle = oracle
        self.receiver = receiver
        self.told = []
        """Futures of the ids of jobs with a webhook."""
        self.large = 0
        """Large jobs that are kept."""
        self._numbers = itertools.count(100)
        self.start()
        oracle.start()

    def start(self, failpoint=""):
        settings = {
            "models.0.engine.run": "worker",  # so that the dispatcher moves while a slow row runs
            "jobs.webhooks.allow": self.receiver.origin,
            "jobs.webhooks.allow_private": "true",
            "jobs.webhooks.secrets.main": "env:HOOK_SECRET",
        }
        arguments = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        self.victim.start(*arguments, failpoint=failpoint)
        if not failpoint:
            self.victim.await_serving()

    def die_at(self, place):
        """One death, one recovery, and the end of all that was acknowledged before it."""
        acknowledged = len(self.oracle.ledger.jobs)
        eventually(lambda: len(self.oracle.ledger.jobs) > acknowledged + 2, "it serves, and takes jobs")
        kind = place.partition(".")[0]
        lead = {
            "release": self._by_a_drain,
            "reap": self._by_an_owner_that_is_gone,
            "purge": self._by_jobs_that_are_soon_deleted,
            "payload": self._by_large_jobs,
            "webhook": self._by_webhooks,
        }.get(kind, self.victim.arm)
        deaths = self.victim.deaths
        lead(place)
        assert self.victim.reap() == -signal.SIGKILL, f"{place} was not reached: {self.victim.log.read_text()[-2000:]}"
        assert self.victim.deaths == deaths + 1
        self.start()
        self.oracle.settled()

    def _by_a_drain(self, place):
        for _ in range(3):
            self.oracle.submit(next(self._numbers), SLOW)
        self.victim.arm(place)
        self.victim.popen.send_signal(signal.SIGTERM)

    def _by_an_owner_that_is_gone(self, place):
        slow = [self.oracle.submit(next(self._numbers), SLOW) for _ in range(4)]
        eventually(lambda: self.oracle.any_runs(slow), "one runs")
        self.victim.kill()
        self.victim.deaths -= 1
        self.start(place)

    def _by_jobs_that_are_soon_deleted(self, place):
        self.victim.arm(place)
        for _ in range(2):
            self.oracle.submit_later(next(self._numbers), rows=LARGE_ROWS, ttl=0.05)

    def _by_large_jobs(self, place):
        self.victim.arm(place)
        for _ in range(2):
            self.large += 1
            self.oracle.submit_later(next(self._numbers), rows=LARGE_ROWS)

    def _by_webhooks(self, place):
        self.victim.arm(place)
        hook = job_pb2.Webhook(url=f"{self.receiver.origin}/hook", secret="main")
        self.told += [self.oracle.submit_later(next(self._numbers), webhook=hook) for _ in range(3)]

    def verdict(self):
        """All that was promised holds."""
        self.oracle.stop()
        self.oracle.check(self.victim.audit, max_attempts=RUNS)
        self._each_is_told()
        self._only_files_in_use_are_left()

    def _each_is_told(self):
        """Messages that nobody noted as sent come again, under the same id and with the same content."""
        ids = {future.result() for future in self.told}
        self._let_a_minute_pass()
        eventually(lambda: {told_of(message) for message in self._received()} >= ids, "all messages arrive", 60)
        contents = defaultdict(set)
        for message in self._received():
            assert message.headers["webhook-id"] == f"msg_{told_of(message)}"
            contents[told_of(message)].add(message.body)
        assert set(contents) == ids
        assert all(len(bodies) == 1 for bodies in contents.values())

    def _received(self):
        """Whole messages: the sender may have died in the midst of one."""
        messages = list(self.receiver.received)
        return [message for message in messages if len(message.body) == int(message.headers["content-length"])]

    def _let_a_minute_pass(self):
        """For the messages only: one that was taken belongs to its taker for a while."""
        if "://" in self.victim.store:
            with psycopg.connect(self.victim.store, autocommit=True) as database:
                database.execute("UPDATE forebay_jobs SET webhook_due = webhook_due - 60 WHERE webhook_due IS NOT NULL")
        else:
            self.victim.skew.write_text("60")

    def _only_files_in_use_are_left(self):
        folder = Path(f"{self.victim.store}.payloads")
        if folder.is_dir():
            eventually(lambda: len(list(folder.iterdir())) == self.large, "what nobody needs is removed")
            assert all(file.stat().st_size > LARGE for file in folder.iterdir())


def told_of(message):
    """The job that a webhook message is about."""
    return json.loads(message.body)["data"]["id"]


def places_of(store_url):
    """The fail points of a store. Those of webhooks first: what was taken and not noted comes again after a while."""
    places = [name for name in NAMES if "://" not in store_url or not name.startswith(FILES)]
    return sorted(places, key=lambda name: (not name.startswith("webhook."), name))


@pytest.fixture
def trial(victims, oracles, store_url, receiver, monkeypatch):
    """A server under load that is to die."""
    victim = victims(store_url)
    return Trial(victim, oracles(victim.address, threads=2, pace=0.01), receiver, monkeypatch)


def test_a_death_at_each_place_loses_nothing(trial, store_url):
    """One after another, on one store."""
    places = places_of(store_url)
    for place in places:
        trial.die_at(place)
    assert trial.victim.deaths == len(places)
    trial.verdict()


@pytest.mark.long
@pytest.mark.parametrize("place", sorted(NAMES))
def test_deaths_at_later_passages_lose_nothing(trial, store_url, place):
    """At each place, several times, with more or less under way."""
    if place not in places_of(store_url):
        pytest.skip("this store has no files")
    rare = place.startswith(("release.", "reap.", "purge.", "webhook."))
    of_files = place.startswith("payload.")  # Two requests and two outcomes.
    for passage in (1, 1, 1) if rare else (2, 3, 4) if of_files else (2, 7, 30):
        trial.die_at(f"{place}:{passage}")
    trial.verdict()
