"""When a message is tried again."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.config.tree import WebhooksConfig
from forebay_server.jobs.webhooks.retries import LONGEST, delivered, final, pause, retry_after

CHANCES = st.floats(0, 1, exclude_max=True)
NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("tries", "bound"), [(1, 10.0), (2, 30.0), (3, 90.0), (4, 270.0), (8, 21_870.0), (9, 43_200.0), (1000, 43_200.0)]
)
def test_pauses_grow_up_to_half_a_day(tries, bound):
    """The pause after try n is drawn evenly from 0 to 10 s * 3^(n-1), at most half a day."""
    assert [pause(tries, chance) for chance in (0.0, 0.5, 0.75)] == [0.0, bound / 2, bound * 0.75]


def test_the_default_tries_take_about_a_day():
    """On average, the last try is made 22.6 hours after the first."""
    total = sum(pause(tries, 0.5) for tries in range(1, WebhooksConfig().max_tries))
    assert total == pytest.approx(22.556 * 3600, rel=1e-4)


@given(st.integers(1, 10_000), CHANCES, st.floats(0, 1e9))
def test_pauses_are_bounded(tries, chance, asked):
    """No pause is negative or beyond half a day and a tenth; it is what was asked for at least, up to half a day."""
    found = pause(tries, chance, asked=asked)
    assert 0.0 <= found <= LONGEST * 1.1
    assert found >= min(asked, LONGEST)
    assert found >= pause(tries, chance)


@given(st.integers(1, 100), CHANCES, CHANCES)
def test_pauses_grow_with_the_tries_and_the_chance(tries, one, other):
    """Later tries never come sooner for the same chance, and the chance decides inside of the bound."""
    low, high = sorted((one, other))
    assert pause(tries, low) <= pause(tries, high)
    assert pause(tries, one) <= pause(tries + 1, one)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("9" * 400, 999_999_999_999.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Tue, 14 Nov 2023 22:14:50", 90.0),
        ("", 0.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("soon", 0.0),
        ("\uff11\uff12", 0.0),
        ("Fri, 99 Nov 2023 22:14:50 GMT", 0.0),
    ],
)
def test_retry_after(header, seconds):
    """Seconds or a date, and nothing for what makes no sense."""
    assert retry_after(header, NOW) == seconds


@given(st.text())
def test_any_retry_after(header):
    """No header can do more than ask for a time."""
    assert retry_after(header, NOW) >= 0.0


def test_statuses():
    """2xx is delivered, 410 is final, everything else, redirects included, is another try."""
    assert [status for status in range(100, 600) if delivered(status)] == list(range(200, 300))
    assert [status for status in range(100, 600) if final(status)] == [410]
