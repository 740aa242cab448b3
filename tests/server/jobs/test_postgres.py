"""What only a database that several servers share can do, and what can happen to it, on real servers.

That it does what every store does, the suite in `stores/` shows.
"""

import contextlib
import os
import queue
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import psycopg
import pytest
import structlog

from forebay_server.errors import ConfigError, JobNotFound, StoreFull, StoreUnavailable
from forebay_server.jobs.postgres import PostgresStore
from forebay_server.jobs.postgres_listener import ANY, payloads
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import (
    Cancel,
    Claim,
    Finish,
    Flow,
    Found,
    Get,
    Page,
    Renew,
    Submit,
    Submitted,
)

IDS = (f"{number:032x}" for number in count(1 << 64))
FLOW = Flow("m", "t", 2, suspect=False)


def new(**values):
    defaults = {
        "id": next(IDS), "tenant": "t", "request_id": "", "fingerprint": b"f", "model": "m", "version": "",
        "priority": 2, "payload": b"request", "expire_after": None, "ttl": 60.0, "webhook": None,
    }  # fmt: skip
    return Submit(**(defaults | values))


@contextlib.contextmanager
def opened(url, changed=lambda _ids: None, **options):
    store = PostgresStore(url, **options)
    store.open(changed)
    try:
        yield store
    finally:
        store.close()


def healed(store, operation=None, within=20.0):
    """The outcome of an operation, as soon as the store answers again; and how long that took."""
    began = time.monotonic()
    while True:
        try:
            (outcome,) = store.apply([operation or Page("t", (), "", 0, 1)])
        except StoreUnavailable:
            assert time.monotonic() - began < within
            time.sleep(0.05)
        else:
            return outcome, time.monotonic() - began


# --- Several servers ------------------------------------------------------------------------------------------------


def test_others_are_told_at_once(database):
    """By the ids of what changed, which a look once a second does not have; and not whoever made the change."""
    told, own = queue.Queue(), queue.Queue()
    with opened(database, told.put), opened(database, own.put) as store:
        told.get(timeout=5.0)  # The first look.
        own.get(timeout=5.0)
        began = time.monotonic()
        submit = new()
        store.apply([submit])
        while not (ids := told.get(timeout=5.0)):
            pass
        assert set(ids) == {submit.id}
        assert time.monotonic() - began < 0.5
        while not own.empty():
            assert own.get() == ()


def test_a_lost_notification_costs_a_second(database):
    """Everyone looks once a second, told or not."""
    told = queue.Queue()
    with opened(database, told.put):
        told.get(timeout=5.0)
        began = time.monotonic()
        assert told.get(timeout=5.0) == ()
        assert told.get(timeout=5.0) == ()
        assert 1.0 < time.monotonic() - began < 3.0


def test_strangers_in_the_same_database_are_not_told(postgres, database):
    """Two services in two schemas of one database."""
    told = queue.Queue()
    other = postgres.url(schema=postgres.schema())
    with opened(database, told.put), opened(other) as store:
        told.get(timeout=5.0)
        store.apply([new()])
        time.sleep(0.2)
        while not told.empty():
            assert told.get() == ()


def test_a_notification_stays_below_the_limit_of_its_size():
    """8,000 bytes; many ids take several, too many are not told one by one."""
    ids = [f"{number:032x}" for number in range(1000)]
    assert payloads(ids[:3], more=False) == [",".join(ids[:3])]
    assert payloads([], more=True) == [ANY]
    several = payloads(ids[:700], more=True)
    assert several[0] == ANY
    assert max(map(len, several)) < 8000
    assert ",".join(several[1:]).split(",") == ids[:700]
    assert payloads(ids, more=False) == [ANY]


def test_two_servers_claim_from_one_queue(database):
    """Every job is claimed, and none by both."""
    with opened(database) as first, opened(database) as second:
        submits = [new() for _ in range(600)]
        first.apply(submits)
        claimed = {"a": [], "b": []}
        ready = threading.Barrier(2)

        def drain(store, owner):
            store.apply([Renew(owner, 1e6)])
            ready.wait()
            while True:
                (jobs,) = store.apply([Claim(owner, FLOW, 7)])
                claimed[owner] += [job.id for job, _ in jobs]
                if not jobs:
                    return
                ends = store.apply([Finish(job.id, owner, job.attempt, JobState.SUCCEEDED, b"", 1) for job, _ in jobs])
                assert [end.state for end in ends] == [JobState.SUCCEEDED] * len(jobs)

        threads = [threading.Thread(target=drain, args=each) for each in ((first, "a"), (second, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(claimed["a"] + claimed["b"]) == sorted(submit.id for submit in submits)
        assert claimed["a"]
        assert claimed["b"]


def test_one_key_at_many_servers_at_once(database):
    """One job, and everyone is answered with it."""
    stores = [PostgresStore(database) for _ in range(4)]
    for store in stores:
        store.open(lambda _ids: None)
    outcomes = []
    ready = threading.Barrier(4)

    def submit(store):
        for number in range(25):
            ready.wait()
            outcomes.append((number, *store.apply([new(request_id=f"k{number}")])))

    threads = [threading.Thread(target=submit, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(25):
        answers = [outcome for key, outcome in outcomes if key == number]
        assert len(answers) == 4
        assert len({outcome.job.id for outcome in answers}) == 1
        assert sum(outcome.created for outcome in answers) == 1
    for store in stores:
        store.close()


def test_servers_that_start_at_once_make_one_schema(database):
    """Whoever comes first makes it, the others wait."""
    stores = [PostgresStore(database) for _ in range(6)]
    with ThreadPoolExecutor(len(stores)) as pool:
        assert list(pool.map(lambda store: store.open(lambda _ids: None), stores)) == [None] * len(stores)
    (created,) = stores[0].apply([new()])
    for store in stores:
        assert store.apply([Get(created.job.id, "t")]) == [Found(created.job, None)]
        store.close()


def test_a_deadlock_is_nobodys_business(postgres, database):
    """A group that was rolled back for another's sake is done again."""
    with opened(database) as store:
        one, two = (outcome.job for outcome in store.apply([new(), new()]))
        with psycopg.connect(database) as other:
            other.execute("SELECT FROM forebay_jobs WHERE id = %s FOR UPDATE", [two.id])
            answer = queue.Queue()
            cancels = [Cancel(one.id, "t"), Cancel(two.id, "t")]
            thread = threading.Thread(target=lambda: answer.put(store.apply(cancels)))
            thread.start()
            time.sleep(0.3)
            with contextlib.suppress(psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
                other.execute("SELECT FROM forebay_jobs WHERE id = %s FOR UPDATE", [one.id])
            other.rollback()
            thread.join()
        assert [job.state for job in answer.get(timeout=1.0)] == [JobState.CANCELLED] * 2


def test_times_are_the_databases(postgres, database):
    """Without a clock of a test."""
    with opened(database) as store:
        (outcome,) = store.apply([new(expire_after=5.0)])
        ((now,),) = postgres.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        assert now - 5.0 < outcome.job.created <= now
        assert outcome.job.expires == outcome.job.created + 5.0


def test_text_that_postgresql_can_not_hold(database):
    """The character NUL, and the one by which it is escaped."""
    text = "a\0b\\0c\\"
    with opened(database) as store:
        submit = new(tenant=text, model=text, version=text, request_id=text)
        (outcome,) = store.apply([submit])
        assert (outcome.job.tenant, outcome.job.model, outcome.job.request_id) == (text, text, text)
        assert store.apply([Get(submit.id, text)]) == [Found(outcome.job, None)]
        assert store.apply([Page(text, (), text, 0, 10)]) == [[outcome.job]]
        (missing,) = store.apply([Get("\0", "t")])
        assert isinstance(missing, JobNotFound)


# --- At the start ---------------------------------------------------------------------------------------------------


def test_what_can_not_be_opened_says_so(postgres):
    """In one sentence, and without the password; what may heal by itself is unavailable, all else is an error."""
    schema = postgres.schema()
    good = postgres.url(tcp=True, schema=schema)
    with opened(good):
        pass
    postgres.execute("UPDATE forebay_store SET version = 99", schema=schema)
    wrong = {
        good: "the job store has schema version 99, of a newer Forebay; this one knows versions up to 2",
        postgres.url(tcp=True, password="secret/of?mine"): "password authentication failed for user",
        postgres.url(tcp=True, database="nowhere"): 'database "nowhere" does not exist',
        "postgresql://me:secret@of@mine:port/x": "jobs.store is not a valid URL",
        "postgresql://me:secret@of@mine:5432/x": "jobs.store is not a valid URL",
        "postgresql://me:secret/of@mine:5432/x": "jobs.store is not a valid URL",
        f"postgresql://stranger@/postgres?{postgres.url().partition('?')[2]}": 'role "stranger" does not exist',
    }
    for url, sentence in wrong.items():
        with structlog.testing.capture_logs() as logs, pytest.raises(ConfigError) as caught:
            PostgresStore(url).open(lambda _ids: None)
        assert sentence in str(caught.value)
        for secret in ("secret", postgres.PASSWORD, "kept%20out"):
            assert secret not in str(caught.value)
            assert secret not in str(logs)
    for url in (
        "postgresql://me:secret@127.0.0.1:1/x",
        "postgresql://me:secret@nowhere.invalid/x",
        "postgresql://me:secret@/x?host=/nowhere",
    ):
        with pytest.raises(StoreUnavailable) as caught:
            PostgresStore(url).open(lambda _ids: None)
        assert "secret" not in str(caught.value)


def test_a_role_without_rights_is_an_error_at_the_start(postgres, database):
    """It can't make its tables."""
    postgres.execute("DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN")
    with pytest.raises(ConfigError, match="can't make or use its tables"):
        PostgresStore(database.replace(f"//{postgres.USER}@", "//guest@")).open(lambda _ids: None)


def test_an_encoding_that_can_not_hold_everything_is_refused(postgres):
    """Only UTF8 can."""
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(ConfigError, match="encoding UTF8, and this has LATIN1"):
        PostgresStore(postgres.url(database="latin")).open(lambda _ids: None)


# --- Faults ---------------------------------------------------------------------------------------------------------


class Load:
    """Submits all the time, and notes what was acknowledged."""

    def __init__(self, store) -> None:
        self.store = store
        self.acknowledged = []
        self.failures = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.is_set():
            submits = [new(payload=b"x" * 3000) for _ in range(5)]
            try:
                outcomes = self.store.apply(submits)
            except StoreUnavailable:
                self.failures += 1
                time.sleep(0.02)
            else:
                self.acknowledged += [outcome.job.id for outcome in outcomes]

    def more(self, jobs):
        """Waits for so many more to be acknowledged."""
        target, until = len(self.acknowledged) + jobs, time.monotonic() + 30.0
        while len(self.acknowledged) < target:
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_server_that_dies_under_load_loses_nothing(postgres_alone, end):
    """Nothing that was acknowledged; the store heals by itself, and says once each that it was ill and is well."""
    with structlog.testing.capture_logs() as logs, opened(postgres_alone.url()) as store:
        with Load(store) as load:
            for _ in range(3):
                load.more(50)
                getattr(postgres_alone, end)()
                time.sleep(0.3)
                postgres_alone.start()
            load.more(50)
        assert load.failures
        for begin in range(0, len(load.acknowledged), 500):
            ids = load.acknowledged[begin : begin + 500]
            assert [found.job.id for found in store.apply([Get(each, "t") for each in ids])] == ids
    events = [log["event"] for log in logs if log["event"] != "job_store_notification_failed"]
    assert events == ["job_store_unavailable", "job_store_available_again"] * 3


def test_a_server_that_comes_later_is_found_by_the_same_store(postgres_alone):
    """Opening it can be tried until it works, and again after it was closed; a frozen server is given up then too."""
    postgres_alone.stop()
    store = PostgresStore(postgres_alone.url(tcp=True), patience=1.0)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.open(lambda _ids: None)
    postgres_alone.start()
    for _ in range(2):
        store.open(lambda _ids: None)
        (submitted,) = store.apply([new()])
        assert submitted.created
        store.close()
    store.open(lambda _ids: None)
    postgres_alone.freeze()
    with pytest.raises(StoreUnavailable):
        store.apply([new()])
    postgres_alone.thaw()
    store.close()


def test_a_server_that_stands_still_is_given_up_and_found_again(postgres_alone):
    """Its connections are open, its kernel answers for it: only a limit of our own ends the wait."""
    with opened(postgres_alone.url(tcp=True), patience=1.0) as store:
        (before,) = store.apply([new()])
        postgres_alone.freeze()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.apply([new()])
        assert 1.0 <= time.monotonic() - began < 10.0
        postgres_alone.thaw()
        outcome, _ = healed(store, Get(before.job.id, "t"))
        assert outcome == Found(before.job, None)


def test_a_server_that_stands_still_for_a_moment_is_waited_for(postgres_alone):
    """The group is carried out once."""
    with opened(postgres_alone.url()) as store:
        store.apply([new()])
        postgres_alone.freeze()
        threading.Timer(1.5, postgres_alone.thaw).start()
        began = time.monotonic()
        (outcome,) = store.apply([new()])
        assert time.monotonic() - began > 1.0
        assert outcome.created
        assert len(store.apply([Page("t", (), "", 0, 10)])[0]) == 2


def test_a_lost_connection_between_groups_is_not_noticed(postgres, database):
    """Nothing was under way, so the group is done again on a new connection."""
    with opened(database) as store:
        store.apply([new()])
        postgres.execute(f"SELECT pg_terminate_backend({store._pid})")
        assert store.apply([new()])[0].created


def test_the_limit_of_connections(postgres, database):
    """No connection at all is unavailable; the first that is free heals it."""
    schema = database.rpartition("%3D")[2]
    postgres.execute("DROP ROLE IF EXISTS few; CREATE ROLE few LOGIN CONNECTION LIMIT 2")
    postgres.execute(f"GRANT ALL ON SCHEMA {schema} TO few")
    url = database.replace(f"//{postgres.USER}@", "//few@")
    with opened(url) as store:
        store.apply([new()])
        until = time.monotonic() + 5.0
        connected = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'few'"
        while postgres.execute(connected) != [(2,)]:  # The listener too.
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(StoreUnavailable):
            PostgresStore(url).open(lambda _ids: None)
        with contextlib.ExitStack() as others:
            postgres.execute("ALTER ROLE few CONNECTION LIMIT 0")
            others.callback(postgres.execute, "ALTER ROLE few CONNECTION LIMIT 2")
            postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'few'")
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    store.apply([new()])
        assert healed(store, new())[0].created


def test_a_full_disk_is_said_as_such(postgres, database):
    """Nothing of the group has happened, what needs no room goes on, and so does all with room again.

    The server's own error for a full disk, raised for new rows.
    """
    schema = database.rpartition("%3D")[2]
    with opened(database) as store:
        (before,) = store.apply([new()])
        postgres.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = 'disk_full'; END $$;"
            "CREATE TRIGGER full_disk BEFORE INSERT ON forebay_jobs EXECUTE FUNCTION full_disk()",
            schema=schema,
        )
        with pytest.raises(StoreFull) as caught:
            store.apply([Cancel(before.job.id, "t"), new()])
        assert caught.value.retry_after == 10.0
        assert store.apply([Get(before.job.id, "t")]) == [Found(before.job, None)]
        assert store.apply([Cancel(before.job.id, "t")])[0].state is JobState.CANCELLED
        postgres.execute("DROP TRIGGER full_disk ON forebay_jobs", schema=schema)
        assert store.apply([new()])[0].created


# --- A database that forgets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forget",
    [
        "TRUNCATE forebay_jobs",
        "DELETE FROM forebay_jobs",
        "TRUNCATE forebay_store",
        "DELETE FROM forebay_processes",
        "UPDATE forebay_processes SET groups = groups - 1",
        "UPDATE forebay_store SET epoch = 'another'",
        "DROP TABLE forebay_jobs, forebay_store, forebay_processes, forebay_owners",
        "ALTER SCHEMA {schema} RENAME TO {schema}_gone; CREATE SCHEMA {schema}",
    ],
)
def test_a_database_that_was_emptied_or_replaced_is_not_served(postgres, database, forget):
    """At the next group, with one line in the log, and for good; what happened in between is not undone."""
    schema = database.rpartition("%3D")[2]
    with structlog.testing.capture_logs() as logs, opened(database) as store:
        (outcome,) = store.apply([new()])
        assert store.apply([Get(outcome.job.id, "t")]) == [Found(outcome.job, None)]
        postgres.execute(forget.format(schema=schema), schema=schema)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="has lost jobs"):
                store.apply([Get(outcome.job.id, "t")])
    assert [(log["event"], log["log_level"]) for log in logs] == [("job_store_lost_jobs", "error")]


def test_after_a_restart_an_emptied_database_is_taken_as_it_is(postgres, database):
    """By the new object; for the other servers it is another database from then on."""
    schema = database.rpartition("%3D")[2]
    with opened(database) as other:
        other.apply([new()])
        postgres.execute("TRUNCATE forebay_jobs", schema=schema)
        with opened(database) as store:
            assert store.apply([Page("t", (), "", 0, 10)]) == [[]]
            assert isinstance(store.apply([new()])[0], Submitted)
            with pytest.raises(StoreUnavailable, match="has lost jobs"):
                other.apply([Page("t", (), "", 0, 10)])


def test_a_restored_backup_is_noticed(postgres_alone):
    """Everything is there but the last group."""
    with opened(postgres_alone.url()) as store:
        store.apply([new()])
        postgres_alone.stop()
        backup, owner = postgres_alone.folder / "backup", postgres_alone.data.stat()
        shutil.copytree(postgres_alone.data, backup)
        postgres_alone.start()
        healed(store, new())
        postgres_alone.stop()
        for path in backup.rglob("*"):
            os.chown(path, owner.st_uid, owner.st_gid)
        shutil.rmtree(postgres_alone.data)
        backup.rename(postgres_alone.data)
        postgres_alone.data.chmod(0o700)
        os.chown(postgres_alone.data, owner.st_uid, owner.st_gid)
        postgres_alone.start()
        with pytest.raises(StoreUnavailable, match="has lost jobs"):
            store.apply([Page("t", (), "", 0, 10)])


def test_a_restart_without_loss_is_not_taken_for_one(postgres_alone):
    """Control of the above: the same steps without the backup."""
    with opened(postgres_alone.url()) as store:
        store.apply([new()])
        postgres_alone.stop()
        postgres_alone.start()
        healed(store, new())
        postgres_alone.stop()
        postgres_alone.start()
        assert len(healed(store, Page("t", (), "", 0, 10))[0]) == 2
