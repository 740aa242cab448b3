"""Shares against the fluid model: weighted fair service, to the row, as if requests were water."""

import random

import pytest

from forebay_server.scheduling.policy import ServerPolicy, TenantPolicy


def fluid(weights, backlog, capacity):
    """What each gets of `capacity` by weighted max-min fairness, none more than it has."""
    got = dict.fromkeys(weights, 0.0)
    open_ = set(weights)
    while capacity > 1e-9 and open_:
        total = sum(weights[name] for name in open_)
        step = min(capacity / total, *((backlog[name] - got[name]) / weights[name] for name in open_))
        for name in open_:
            got[name] += step * weights[name]
        capacity -= step * total
        open_ = {name for name in open_ if backlog[name] - got[name] > 1e-9}
    return got


@pytest.mark.parametrize("seed", range(10))
def test_service_follows_the_fluid_model(world, seed):
    """Flows with random weights, row counts and backlogs get what the fluid gives, within a batch and 10 %."""
    rng = random.Random(seed)
    weights = {f"t{index}": rng.choice([1.0, 2.0, 5.0]) for index in range(rng.randint(2, 8))}
    tenants = {name: TenantPolicy(weight=weight) for name, weight in weights.items()}
    w = world(server=ServerPolicy(tenants=tenants))
    backlog = dict.fromkeys(weights, 0)
    for name in weights:
        goal = rng.randint(50, 2000)
        while backlog[name] < goal:
            rows = rng.randint(1, 4)
            w.admit(rows=rows, tenant=name)
            backlog[name] += rows
    got = dict.fromkeys(weights, 0)
    capacity = sum(backlog.values()) // 2
    while sum(got.values()) < capacity:
        batch = w.take()
        for part in batch.parts:
            got[part.request.tenant] += part.rows
        w.finish(batch, 0.0)
    expected = fluid(weights, backlog, sum(got.values()))
    for name in weights:
        assert got[name] == pytest.approx(expected[name], rel=0.1, abs=8)


def test_shares_hold_across_lanes(world):
    """A tenant that uses many shapes gains nothing by it."""
    w = world()
    for index in range(800):
        w.admit(tenant="many", bucket=((index % 8 + 10,),))
        w.admit(tenant="one")
    got = {"many": 0, "one": 0}
    for _ in range(100):
        batch = w.take()
        got[batch.parts[0].request.tenant] += batch.rows * batch.lane.row_cost
        w.finish(batch, 0.0, seconds=0.010 + 0.001 * batch.rows)
    assert got["many"] == pytest.approx(got["one"], rel=0.1)


def test_no_flow_waits_longer_than_a_round(world):
    """Starvation bound: with equal weights, a request waits for at most one of each other flow, and one batch."""
    w = world()
    for index in range(50):
        for _ in range(100):
            w.admit(tenant=f"t{index}")
    late = w.admit(tenant="late")
    before = 0
    while late.outputs is None:
        batch = w.take()
        before += batch.rows
        w.finish(batch, 0.0)
    assert before <= 50 + 8 + 8
