"""Taking jobs in: idempotency keys and sequences."""

import pytest

from forebay_server.errors import JobKeyReused
from forebay_server.jobs.states import FINAL, JobState
from forebay_server.jobs.store import Found, Submitted


@pytest.mark.parametrize("state", JobState)
def test_the_same_key_and_payload_is_the_same_job(world, state):
    """In whatever state that is; nothing else comes into being."""
    job = world.in_state(state, request_id="key", fingerprint=b"a")
    world.now += 1.0
    again = world.one(world.new(request_id="key", fingerprint=b"a", payload=b"other bytes", model="other"))
    assert again == Submitted(job, created=False)
    assert world.page() == [job]


@pytest.mark.parametrize("state", JobState)
def test_the_same_key_with_another_payload_is_refused(world, state):
    """Also when the first job has long finished."""
    job = world.in_state(state, request_id="key", fingerprint=b"a")
    before = world.get(job)
    refused = world.one(world.new(request_id="key", fingerprint=b"b"))
    assert isinstance(refused, JobKeyReused)
    assert refused.message == "the request id 'key' stands for a job with another payload"
    assert world.page() == [job]
    assert world.get(job) == before


def test_another_tenants_key_is_another_key(world):
    """Tenants do not meet in their keys."""
    ours = world.submit(tenant="a", request_id="key", fingerprint=b"a")
    theirs = world.submit(tenant="b", request_id="key", fingerprint=b"b")
    assert world.page(tenant="a") == [ours]
    assert world.page(tenant="b") == [theirs]


def test_without_a_key_equal_payloads_are_different_jobs(world):
    """The empty key is none."""
    first, second = world.submit(), world.submit()
    assert world.page() == [second, first]


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_key_is_free_again_once_its_job_is_purged(world, state):
    """Until then it is not, whatever the time."""
    first = world.ended(state, request_id="key", fingerprint=b"a", ttl=10.0)
    world.now += 100.0
    assert isinstance(world.one(world.new(request_id="key", fingerprint=b"b")), JobKeyReused)
    assert world.purge() == 1
    second = world.submit(request_id="key", fingerprint=b"b")
    assert world.page() == [second]
    assert world.gone(first)


def test_one_key_many_times_in_one_group(world):
    """The first makes the job, the others get it, and a different payload among them is refused."""
    news = [world.new(request_id="key", fingerprint=b"a") for _ in range(4)]
    news.insert(2, world.new(request_id="key", fingerprint=b"b"))
    first, second, refused, fourth, fifth = world.do(*news)
    assert first.created
    assert first.job.id == news[0].id
    assert second == fourth == fifth == Submitted(first.job, created=False)
    assert isinstance(refused, JobKeyReused)
    assert world.page() == [first.job]


@pytest.mark.parametrize("key", ["", "key"])
def test_a_repeated_operation_is_the_same_job(world, key):
    """Whoever does not know whether a group happened gives it again, with the same ids."""
    new = world.new(request_id=key)
    first = world.one(new)
    world.now += 1.0
    assert world.one(new) == first
    assert world.do(new, new) == [first, first]
    assert world.page() == [first.job]


def test_sequences_grow_over_all_tenants_and_models(world):
    """In the order in which jobs were taken in, also inside a group."""
    outcomes = world.do(*(world.new(tenant=f"t{n % 3}", model=f"m{n % 2}") for n in range(20)))
    outcomes += world.do(*(world.new(tenant=f"t{n % 3}", model=f"m{n % 2}") for n in range(20)))
    sequences = [outcome.job.sequence for outcome in outcomes]
    assert sequences == sorted(set(sequences))
    assert sequences[0] > 0


def test_a_sequence_is_never_used_again(world):
    """Not even that of the last job, after everything was purged."""
    last = world.ended(ttl=1.0)
    world.now += 2.0
    assert world.purge() == 1
    assert world.submit().sequence > last.sequence


def test_a_sequence_is_never_used_again_by_a_reopened_store(lasting):
    """As above, but its memory is gone too."""
    last = lasting.ended(ttl=1.0)
    lasting.now += 2.0
    assert lasting.purge() == 1
    lasting.reopen()
    assert lasting.submit().sequence > last.sequence


def test_all_texts_are_kept(world):
    """Any Unicode, quotes, and what looks like SQL; any bytes."""
    text = "Ünï 'quote' \"double\" ; DROP TABLE jobs; -- 漢字 \U0001f980"
    payload = bytes(range(256)) * 3
    job = world.submit(tenant=text, model=text, version=text, request_id=text, payload=payload)
    assert (job.tenant, job.model, job.version, job.request_id) == (text, text, text, text)
    assert world.get(job, text) == Found(job, None)
    world.renew()
    ((claimed, given),) = world.claim(tenant=text, model=text)
    assert (claimed.id, given) == (job.id, payload)


@pytest.mark.parametrize("size", [0, 1, 262_143, 262_144, 262_145, 3_000_000])
def test_payloads_and_outcomes_of_any_size(world, size):
    """Small ones in their row, large ones in a file: nobody sees the difference."""
    payload = bytes(range(251)) * (size // 251 + 1)
    job = world.running(payload=payload[:size])
    world.release(job)
    ((job, given),) = world.claim()
    assert given == payload[:size]
    end = world.finish(job, outcome=payload[1 : size + 1])
    assert world.get(job) == Found(end, payload[1 : size + 1])


def test_a_store_keeps_what_it_has(lasting):
    """Jobs of all states, their outcomes, keys and messages, over a reopening."""
    states = list(reversed(JobState))
    jobs = [lasting.in_state(state, request_id=state.name, webhook=lasting.HOOK, ttl=60.0) for state in states]
    founds = [lasting.get(job) for job in jobs]
    backlog = lasting.backlog()
    lasting.reopen()
    assert [lasting.get(job) for job in jobs] == founds
    assert lasting.page() == jobs[::-1]
    assert lasting.backlog() == backlog
    assert lasting.one(lasting.new(request_id="FAILED")) == Submitted(jobs[2], created=False)
    assert [delivery.job for delivery in lasting.deliveries()] == jobs[:4]
