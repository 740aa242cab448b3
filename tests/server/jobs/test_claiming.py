"""Which jobs are claimed: never more than wanted, everybody gets on, suspects alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.jobs import claiming as module
from forebay_server.jobs.claiming import MOST_JOBS, SUSPECT_PAUSE, Claiming, wanted, weight
from forebay_server.jobs.store import Flow
from forebay_server.scheduling.figures import Pace
from forebay_server.scheduling.request import Priority


def flow(tenant="t", priority=Priority.NORMAL, model="m", *, suspect=False):
    return Flow(model, tenant, priority, suspect)


@pytest.mark.parametrize(
    ("pace", "round_trip", "rows_per_job", "jobs"),
    [
        (Pace(8, 1, 0.001), 0.0, 1.0, 16),  # two full batches
        (Pace(8, 3, 0.001), 0.0, 1.0, 48),  # of each instance
        (Pace(8, 1, 0.001), 0.0, 4.0, 4),  # of four rows each
        (Pace(8, 1, 0.001), 0.0, 100.0, 1),
        (Pace(8, 2, 0.001), 0.010, 1.0, 32 + 20),  # and what two instances do in 10 ms
        (Pace(8, 1, 1e-9), 1.0, 1.0, MOST_JOBS),
    ],
)
def test_how_many_are_wanted(pace, round_trip, rows_per_job, jobs):
    """Two full batches per instance, and what the engine does while a claim is on its way."""
    assert wanted(pace, round_trip, rows_per_job) == jobs


def test_claims_are_not_made_for_a_few():
    """A quarter has to be missing."""
    assert [module.room(16, have) for have in (0, 11, 12, 13, 16, 20)] == [16, 5, 4, 0, 0, 0]
    assert module.room(1, 0) == 1


@pytest.mark.parametrize(
    ("jobs", "most", "claims"),
    [(1, 128, [1]), (128, 128, [128]), (129, 128, [64, 65]), (300, 128, [100, 100, 100]), (2048, 256, [256] * 8)],
)
def test_large_amounts_are_several_claims(jobs, most, claims):
    """Each about as large as the others, and none too large."""
    assert module.pieces(jobs, most) == claims


def test_claims_are_small_while_online_requests_come():
    """What one brings is taken up in one go."""
    assert module.most_at_once(online=True) * 4 <= module.most_at_once(online=False)


def test_after_a_claim_beside_online_requests_there_is_a_rest():
    """Such that jobs have what others leave of the time; batches count where they run in the dispatcher."""
    handling = module.HANDLING
    for online, share in ((0.0, 0.9), (0.4, 0.5), (0.8, 0.1), (2.0, 0.1)):
        assert module.rest(16, Pace(8, 1, 0.001), 1.0, online) == pytest.approx(16 * handling / share)
    inline = Pace(8, 1, 0.001, inline=True)
    assert module.rest(16, inline, 2.0, 0.4) == pytest.approx(16 * (handling + 0.002) / 0.5)


def test_shares_go_by_the_weight_of_the_priority():
    """HIGH 8, NORMAL 2, LOW 1; tenants of one priority the same."""
    claiming = Claiming()
    waiting = {"m": {flow("a", priority): 1000 for priority in Priority} | {flow("b"): 1000}}
    amounts = dict(claiming.choose(waiting, {"m": 130}, in_flight=0, now=0.0))
    assert amounts == {
        flow("a", Priority.HIGH): 80,
        flow("a"): 20,
        flow("b"): 20,
        flow("a", Priority.LOW): 10,
    }


def test_one_by_one_comes_to_the_same():
    """Room for one job at a time: after 130 of them each has its part."""
    claiming = Claiming()
    waiting = {"m": {flow("a", priority): 1000 for priority in Priority} | {flow("b"): 1000}}
    got = {}
    for _ in range(130):
        ((chosen, jobs),) = claiming.choose(waiting, {"m": 1}, in_flight=5, now=0.0)
        got[chosen] = got.get(chosen, 0) + jobs
    assert sorted(got.values()) == [10, 20, 20, 80]


def test_nobody_saves_up_while_away():
    """A flow that comes later begins where the others are."""
    claiming = Claiming()
    claiming.choose({"m": {flow("a"): 1000}}, {"m": 500}, in_flight=0, now=0.0)
    amounts = dict(claiming.choose({"m": {flow("a"): 1000, flow("b"): 1000}}, {"m": 100}, in_flight=0, now=0.0))
    assert amounts == {flow("a"): pytest.approx(50, abs=1), flow("b"): pytest.approx(50, abs=1)}


def test_what_did_not_come_is_not_counted():
    """A claim that brought nothing costs its flow nothing."""
    claiming = Claiming()
    waiting = {"m": {flow("a"): 1000, flow("b"): 1000}}
    claiming.choose({"m": {flow("a"): 1000}, "n": {}}, {"m": 100}, in_flight=0, now=0.0)
    claiming.unserved(flow("a"), 100)
    claiming._virtual.clear()
    assert dict(claiming.choose(waiting, {"m": 10}, in_flight=0, now=0.0)) == {flow("a"): 5, flow("b"): 5}


def test_suspects_run_alone():
    """When their turn comes nothing else is claimed until all that is in flight has ended; then one, by itself."""
    claiming = Claiming()
    bad = flow(suspect=True)
    waiting = {"m": {bad: 2, flow(): 10}, "n": {flow(model="n"): 10}}
    room = {"m": 4, "n": 4}
    assert claiming.choose(waiting, room, in_flight=3, now=10.0) == []
    assert claiming.choose(waiting, room, in_flight=0, now=11.0) == [(bad, 1)]
    assert claiming.alone
    assert claiming.choose(waiting, room, in_flight=0, now=11.1) == []
    claiming.suspect_done(14.0)
    assert claiming.suspects_at == 14.0 + 3.0
    assert dict(claiming.choose(waiting, room, in_flight=0, now=14.0)) == {flow(): 4, flow(model="n"): 4}
    assert claiming.choose(waiting, room, in_flight=8, now=16.9) != []
    assert claiming.choose(waiting, room, in_flight=8, now=17.0) == []
    assert claiming.choose(waiting, room, in_flight=0, now=17.5) == [(bad, 1)]


def test_suspects_need_not_wait_for_nobody():
    """If nothing else waits or is in flight the next one is claimed at once."""
    claiming = Claiming()
    bad = flow(suspect=True)
    for now in (1.0, 1.1, 1.2):
        assert claiming.choose({"m": {bad: 1}}, {"m": 4}, in_flight=0, now=now) == [(bad, 1)]
        claiming.suspect_done(now)
    assert claiming.suspects_at == 1.2 + SUSPECT_PAUSE


def test_models_without_room_get_nothing():
    """Not served, or full: not even suspects."""
    claiming = Claiming()
    assert claiming.choose({"m": {flow(): 5, flow(suspect=True): 1}}, {}, in_flight=0, now=1.0) == []


flows = st.builds(flow, st.sampled_from("abc"), st.sampled_from(list(Priority)), st.sampled_from("mn"))


@given(
    st.dictionaries(flows, st.integers(1, 30), min_size=1, max_size=8),
    st.lists(st.dictionaries(st.sampled_from("mn"), st.integers(0, 12), max_size=2), min_size=1, max_size=40),
)
def test_never_more_than_wanted_and_nobody_starves(jobs, rounds):
    """Per round and model at most the room, per flow at most what waits; room is used as long as something waits; a
    flow that waits all the time falls behind its part by no more than one round's worth."""
    claiming = Claiming()
    left = dict(jobs)
    service = dict.fromkeys(jobs, 0)
    for room in rounds:
        waiting = {}
        for each, count in left.items():
            waiting.setdefault(each.model, {})[each] = count
        amounts = claiming.choose(waiting, room, in_flight=0, now=0.0)
        assert len({each for each, _ in amounts}) == len(amounts)
        for model in "mn":
            claimed = sum(count for each, count in amounts if each.model == model)
            there = sum(count for each, count in left.items() if each.model == model)
            assert claimed == min(room.get(model, 0), there)
        for each, count in amounts:
            assert 0 < count <= left[each]
            left[each] -= count
            service[each] += count
    for one in jobs:
        for other in jobs:
            if one.model == other.model and left[one] and left[other]:
                assert service[one] / weight(one) - service[other] / weight(other) <= 1 / weight(one) + 1 / weight(
                    other
                )
