"""The store is full, down, slow or has another time: unary traffic goes on, `Submit` says why not, and all heals."""

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from forebay.v1 import job_service_pb2
from tests.chaos.conftest import MAX_ATTEMPTS, UnaryTraffic
from tests.chaos.oracle import request_of
from tests.serving import details_of
from tests.waiting import eventually

BALLAST = 64 << 10


def refusal_of(oracle, number: int, timeout: float = 15.0) -> tuple[str, str] | None:
    """Code and reason with which a new job is refused; None if it was taken."""
    message = job_service_pb2.SubmitRequest(request=request_of(number), request_id=f"number-{number}")
    try:
        job = oracle.stub.Submit(message, timeout=timeout).job
    except grpc.RpcError as error:
        code, reason, _ = details_of(error)
        return code.name, reason
    oracle.ledger.acknowledged(number, job.id)
    return None


@contextlib.contextmanager
def small_disk(path, mib: int):
    """A file system of so many MiB."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_refuses_jobs_and_heals(victims, oracles, tmp_path):
    """With no room for a page: STORE_FULL with a delay, `Predict` as ever; with room again, all is well."""
    with small_disk(tmp_path / "disk", 16) as disk:
        victim = victims(str(disk / "jobs.db")).start().await_serving()
        oracle = oracles(victim.address)
        for number in range(100, 120):
            oracle.submit(number)
        oracle.settled()
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for chunk in (BALLAST, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * chunk)
        traffic = UnaryTraffic(victim.address)
        refused = None
        number = 1000
        until = time.monotonic() + 20
        while refused is None and time.monotonic() < until:
            number += 1
            refused = refusal_of(oracle, number)
        assert refused == ("RESOURCE_EXHAUSTED", "STORE_FULL")
        time.sleep(0.5)
        ballast.unlink()
        eventually(lambda: refusal_of(oracle, number) is None, "jobs are taken again", 5)
        traffic.stop()
        oracle.check(victim.audit, max_attempts=MAX_ATTEMPTS)


@pytest.mark.long
def test_a_death_on_a_full_disk_loses_nothing(victims, oracles, tmp_path):
    """Killed while full, the server starts again once there is room, with all that it acknowledged."""
    with small_disk(tmp_path / "disk", 16) as disk:
        victim = victims(str(disk / "jobs.db")).start(row_seconds=0.01).await_serving()
        oracle = oracles(victim.address, threads=2).start()
        eventually(lambda: len(oracle.ledger.jobs) > 20, "load")
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * BALLAST)
        eventually(lambda: oracle.refusals["RESOURCE_EXHAUSTED"], "the disk is full", 20)
        victim.kill()
        ballast.unlink()
        victim.start().await_serving()
        oracle.stop()
        oracle.check(victim.audit, max_attempts=MAX_ATTEMPTS)


@contextlib.contextmanager
def disk_that_fails(folder):
    """A file system on a device of its own: its folder, `fail`, which makes it read-only, and `mend`."""
    image, place = folder / "image", folder / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)

    def run(*command):
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def mount():
        return run("mount", "-o", "loop,errors=remount-ro", str(image), str(place)).returncode == 0

    def fail():
        """As when the device has an error."""
        device = run("findmnt", "-no", "SOURCE", str(place)).stdout.strip().removeprefix("/dev/")
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test")

    def mend():
        """Nobody may have it open: umount says so."""
        eventually(lambda: run("umount", str(place)).returncode == 0, "the server has let go of its files")
        run("fsck.ext4", "-fy", str(image))
        assert mount()

    if any(shutil.which(tool) is None for tool in ("mkfs.ext4", "fsck.ext4", "findmnt")):
        pytest.skip("there are no tools for file systems here")
    if run("mkfs.ext4", "-qF", str(image)).returncode or not mount():
        pytest.skip("file systems can't be mounted here")
    try:
        yield place, fail, mend
    finally:
        run("umount", "--lazy", str(place))


def test_a_file_system_that_becomes_read_only(victims, oracles, tmp_path):
    """STORE_UNAVAILABLE, `Predict` as ever; the server lets go of its files, so that it can be repaired, and heals.

    A sync that is on its way while ext4 gives up its journal may be confirmed without having happened: on Linux 6.18 a
    program that only writes and syncs lost what the last sync had confirmed in one of ten such failures. So what is
    acknowledged between the failure and the repair may be gone; nothing else is.
    """
    with disk_that_fails(tmp_path) as (disk, fail, mend):
        victim = victims(str(disk / "jobs.db")).start(row_seconds=0.002).await_serving()
        oracle = oracles(victim.address, threads=2, pace=0.005).start()
        traffic = UnaryTraffic(victim.address)
        eventually(lambda: len(oracle.ledger.jobs) > 20, "load")
        failing = time.monotonic()
        fail()
        eventually(lambda: oracle.refusals["UNAVAILABLE"], "jobs are refused", 20)
        assert refusal_of(oracle, 5) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        before = len(oracle.ledger.jobs)
        oracle.doubt(failing)
        mend()
        eventually(lambda: len(oracle.ledger.jobs) > before + 20, "jobs are taken again", 20)
        oracle.stop()
        traffic.stop()
        oracle.check(victim.audit, max_attempts=2)
        victim.kill()


@pytest.mark.parametrize("seconds", [3600.0, pytest.param(-3600.0, marks=pytest.mark.long)])
def test_a_stepped_clock_hurts_nobody(victims, oracles, tmp_path, seconds):
    """An hour forward or back under load: claims and waits go on, and each job runs once."""
    victim = victims(str(tmp_path / "jobs.db")).start(row_seconds=0.002).await_serving()
    oracle = oracles(victim.address, threads=2).start()
    traffic = UnaryTraffic(victim.address)
    eventually(lambda: len(oracle.ledger.jobs) > 20, "load")
    victim.skew.write_text(str(seconds))
    before = len(oracle.ledger.jobs)
    eventually(lambda: len(oracle.ledger.jobs) > before + 50, "load after the step")
    oracle.stop()
    traffic.stop()
    assert oracle.check(victim.audit, max_attempts=1) > 70


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def place(server) -> str:
    """The URL of an empty place on a server that is the test's own."""
    url: str = server.url(schema=server.schema())
    return url


def through_an_outage(victim, oracle, outage) -> None:
    """Load on jobs and `Predict` before, in and after an outage of the database."""
    oracle.start()
    traffic = UnaryTraffic(victim.address)
    eventually(lambda: len(oracle.ledger.jobs) > 20, "load")
    outage()
    before = len(oracle.ledger.jobs)
    eventually(lambda: len(oracle.ledger.jobs) > before + 20, "load after the outage", 30)
    oracle.stop()
    traffic.stop()
    oracle.check(victim.audit, max_attempts=MAX_ATTEMPTS)


@pytest.mark.parametrize("way", ["kill", pytest.param("restart", marks=pytest.mark.long)])
def test_a_database_that_restarts(victims, oracles, postgres_alone, way):
    """While PostgreSQL is gone `Submit` is UNAVAILABLE; nothing is lost, and `Predict` never notices."""
    victim = victims(place(postgres_alone)).start().await_serving()
    oracle = oracles(victim.address, threads=2)

    def outage():
        postgres_alone.kill() if way == "kill" else postgres_alone.stop()
        eventually(lambda: oracle.refusals["UNAVAILABLE"], "jobs are refused", 20)
        assert refusal_of(oracle, 5) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        postgres_alone.start()

    through_an_outage(victim, oracle, outage)


@pytest.mark.long
def test_a_database_that_stands_still(victims, oracles, postgres_alone):
    """Stopped for ten seconds (SIGSTOP), which looks like a dead network: STORE_UNAVAILABLE within the set time."""
    victim = victims(place(postgres_alone)).start("--set", "jobs.store_timeout_s=1").await_serving()
    oracle = oracles(victim.address, threads=2)

    def outage():
        postgres_alone.freeze()
        try:
            stopped = time.monotonic()
            eventually(lambda: oracle.refusals["UNAVAILABLE"], "jobs are refused", 10)
            assert refusal_of(oracle, 5) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
            time.sleep(max(0.0, 10 - (time.monotonic() - stopped)))
        finally:
            postgres_alone.thaw()

    through_an_outage(victim, oracle, outage)


def test_a_database_without_a_connection_to_spare(victims, oracles, postgres_alone):
    """All connections are cut and no new one is let in for a while."""
    schema = postgres_alone.schema()
    postgres_alone.execute(f"CREATE ROLE visitor LOGIN; GRANT ALL ON SCHEMA {schema} TO visitor")
    url = postgres_alone.url(schema=schema).replace(f"//{postgres_alone.USER}@", "//visitor@")
    victim = victims(url).start().await_serving()
    oracle = oracles(victim.address, threads=2)

    def outage():
        postgres_alone.execute("ALTER ROLE visitor CONNECTION LIMIT 0")
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'visitor'"
        assert postgres_alone.execute(cut)
        eventually(lambda: oracle.refusals["UNAVAILABLE"], "jobs are refused", 20)
        assert refusal_of(oracle, 5) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        postgres_alone.execute("ALTER ROLE visitor CONNECTION LIMIT -1")

    through_an_outage(victim, oracle, outage)


@pytest.mark.long
def test_two_servers_share_one_queue_and_one_dies(victims, oracles, database):
    """What the dead one had claimed is taken over by the other; its callers get their results there."""
    first, second = victims(database), victims(database)
    second.audit = first.audit
    first.start(row_seconds=0.02)
    second.start(row_seconds=0.02)
    first.await_serving()
    second.await_serving()
    oracle = oracles(second.address, threads=2).start()
    helper = oracles(first.address, threads=0)
    for number in range(100, 200):
        oracle.ledger.acknowledged(number, helper.submit(number))
    first.kill()
    eventually(lambda: len(oracle.ledger.jobs) > 150, "load")
    oracle.stop()
    oracle.check(first.audit, max_attempts=2)


def test_two_servers_run_no_job_twice(victims, oracles, database):
    """In the good case each row runs exactly once."""
    first, second = victims(database), victims(database)
    second.audit = first.audit
    first.start(row_seconds=0.001).await_serving()
    second.start(row_seconds=0.001).await_serving()
    oracle = oracles(first.address, threads=4).start()
    eventually(lambda: len(oracle.ledger.jobs) > 400, "load", 30)
    oracle.stop()
    oracle.check(first.audit, max_attempts=1)
    runners = {line.split()[1] for line in first.audit.read_text().splitlines()}
    assert len(runners) == 2, "one of them has run nothing"
