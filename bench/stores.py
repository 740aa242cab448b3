"""Job stores without a server: fills one with jobs, and measures what it can do by itself.

    python -m bench.stores fill STORE JOBS CALLS     jobs of the small model, waiting
    python -m bench.stores rate STORE JOBS CALLS     jobs/s to submit them, and to claim and finish them
    python -m bench.stores check STORE JOBS CALLS    how many succeeded, and attempts in all
    python -m bench.stores flat STORE JOBS CALLS     claim time and bytes a job, with few finished jobs and with so many

STORE is the setting `jobs.store`. Writes JSON to standard output, and its progress to standard error. `job_cases` calls
it.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

from bench.models import read_calls
from forebay_server.jobs.choose import choose_store
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Claim, Claimed, Finish, Flow, Get, Page, Renew, Store, Submit
from forebay_server.scheduling.request import Priority

GROUP = 1024
"""Operations in a group, and jobs in a claim, as in a busy server (`Keeper` has at most so many)."""
FEW = 10_000
"""Finished jobs with which a store is compared that has many."""
CLAIM_ROUNDS = 100
OWNER = "bench"
PAGE = 10_000


FLOW = Flow(model="small", tenant="", priority=int(Priority.NORMAL), suspect=False)
"""Where the jobs of the small model wait; those of others are only taken in."""


def submissions(calls: Path) -> Iterator[Submit]:
    """New jobs, as `Submit` makes them, of the model after which the file of calls is named."""
    requests = [request for request, _ in read_calls(calls)]
    for number in count():
        yield Submit(
            id=os.urandom(16).hex(),
            tenant=FLOW.tenant,
            request_id=f"bench-{os.getpid()}-{number}",
            fingerprint=b"\0" * 32,
            model=calls.stem,
            version="",
            priority=FLOW.priority,
            payload=requests[number % len(requests)],
            expire_after=None,
            ttl=86_400.0,
            webhook=None,
        )


def fill(store: Store, jobs: int, new: Iterator[Submit]) -> float:
    """Submits so many jobs in groups; jobs/s, the making of the jobs left out."""
    spent = 0.0
    for start in range(0, jobs, GROUP):
        group = list(islice(new, min(GROUP, jobs - start)))
        began = time.perf_counter()
        store.apply(group)
        spent += time.perf_counter() - began
    return jobs / spent


def work_off(store: Store, outcome: bytes) -> tuple[int, float]:
    """Claims and finishes all that waits, as a server with an engine that takes no time; jobs, and jobs/s."""
    store.apply([Renew(OWNER, 3600.0)])
    done = 0
    finishes: Sequence[Finish] = ()
    began = time.perf_counter()
    while True:
        *_, claimed = store.apply([*finishes, Claim(OWNER, FLOW, GROUP)])
        if not isinstance(claimed, list) or not claimed:
            return done, done / (time.perf_counter() - began)
        finishes = [_finish(job, outcome) for job in claimed]
        done += len(finishes)


def _finish(claimed: Claimed, outcome: bytes) -> Finish:
    job = claimed.job
    return Finish(job.id, OWNER, job.attempt, JobState.SUCCEEDED, outcome, 1)


def claim_seconds(store: Store, new: Iterator[Submit], outcome: bytes) -> float:
    """The median time to claim 16 jobs, which are finished then."""
    store.apply([Renew(OWNER, 3600.0)])
    times = []
    for _ in range(CLAIM_ROUNDS):
        store.apply(list(islice(new, 16)))
        began = time.perf_counter()
        (claimed,) = store.apply([Claim(OWNER, FLOW, 16)])
        times.append(time.perf_counter() - began)
        if isinstance(claimed, list):
            store.apply([_finish(job, outcome) for job in claimed])
    return sorted(times)[CLAIM_ROUNDS // 2]


def look_seconds(store: Store) -> tuple[float, float]:
    """The median times of a `Get` and of a page of 100, of the newest jobs."""
    (page,) = store.apply([Page(FLOW.tenant, (), "", 0, 100)])
    assert isinstance(page, list)
    gets, pages = [], []
    for job in page:
        began = time.perf_counter()
        store.apply([Get(job.id, FLOW.tenant)])
        between = time.perf_counter()
        store.apply([Page(FLOW.tenant, (), "", 0, 100)])
        gets.append(between - began)
        pages.append(time.perf_counter() - between)
    return sorted(gets)[len(gets) // 2], sorted(pages)[len(pages) // 2]


def checked(store: Store) -> dict[str, float]:
    """What became of all jobs."""
    succeeded = attempts = before = 0
    while True:
        (page,) = store.apply([Page(FLOW.tenant, (), "", before, PAGE)])
        assert isinstance(page, list)
        if not page:
            return {"succeeded": succeeded, "attempts": attempts}
        succeeded += sum(job.state is JobState.SUCCEEDED for job in page)
        attempts += sum(job.attempt for job in page)
        before = page[-1].sequence


def size(store: str) -> int:
    """Bytes of the files of a store that is a file."""
    path = Path(store)
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if file.is_file())


def flat(store: Store, path: str, jobs: int, new: Iterator[Submit], outcome: bytes) -> dict[str, float]:
    """What finished jobs cost: with `FEW` of them, and with `jobs`."""
    told: dict[str, float] = {}
    done = 0
    part = max(FEW, jobs // 20)
    for finished, name in ((FEW, "few"), (jobs, "many")):
        while done < finished:
            # The last `FEW` are a part of their own: a rate depends on how many jobs wait, too.
            left = finished - done - FEW
            more = min(part, left) if left > 0 else finished - done
            fill(store, more, new)
            told[f"drain_{name}_per_s"] = work_off(store, outcome)[1]
            done += more
            print(f"{done:,} of {jobs:,} jobs finished", file=sys.stderr, flush=True)
        told[f"bytes_per_job_{name}"] = size(path) / done
        told[f"claim_{name}_ms"] = claim_seconds(store, new, outcome) * 1e3
        get, page = look_seconds(store)
        told |= {f"get_{name}_ms": get * 1e3, f"page_{name}_ms": page * 1e3}
        done += CLAIM_ROUNDS * 16
    return told


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fill", "rate", "check", "flat"])
    parser.add_argument("store")
    parser.add_argument("jobs", type=int)
    parser.add_argument("calls", type=Path)
    arguments = parser.parse_args()
    store = choose_store(arguments.store, lost=b"")
    store.open(lambda _changed: None)
    new = submissions(arguments.calls)
    outcome = read_calls(arguments.calls)[0][1]
    told: dict[str, float] = {}
    if arguments.what == "flat":
        told = flat(store, arguments.store, arguments.jobs, new, outcome)
    elif arguments.what == "check":
        told = checked(store)
    else:
        told["submit_per_s"] = fill(store, arguments.jobs, new)
        if arguments.what == "rate":
            told["jobs"], told["drain_per_s"] = work_off(store, outcome)
    store.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
