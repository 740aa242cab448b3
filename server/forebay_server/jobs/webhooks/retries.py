"""What becomes of a message that did not arrive: when it is tried again, and when it is given up.

Pauses grow by a factor of three from 10 seconds to half a day, with *full jitter*: each is drawn evenly from zero to
its bound, so that messages which failed together do not come back together (Marc Brooker, "Exponential Backoff And
Jitter", AWS Architecture Blog, 2015). The 11 pauses between 12 tries are 22 to 23 hours on average.
"""

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

FIRST: Final = 10.0
"""Seconds, the bound of the first pause."""
FACTOR: Final = 3.0
LONGEST: Final = 43_200.0
"""Seconds, the bound of all pauses; also of what a receiver can ask for with Retry-After."""

_SPREAD: Final = 0.1  # of the time that a receiver asked for, so that not all come back at once
_GONE: Final = 410


def delivered(status: int) -> bool:
    """Whether an HTTP status says that the message has arrived. A redirect does not: it is not followed."""
    return 200 <= status < 300


def final(status: int) -> bool:
    """Whether it says that the receiver wants no more tries of it (410 Gone)."""
    return status == _GONE


def pause(tries: int, chance: float, *, asked: float = 0.0) -> float:
    """Seconds to the next try.

    Args:
        tries: How many there were; at least 1.
        chance: A random number, 0 <= chance < 1.
        asked: Seconds that the receiver asked for; the pause is at least that, up to `LONGEST` and a tenth.
    """
    bound = min(LONGEST, FIRST * FACTOR ** min(tries - 1, 32))
    return max(bound * chance, min(asked, LONGEST) * (1 + _SPREAD * chance))


def retry_after(header: str, now: float) -> float:
    """Seconds that a Retry-After header (RFC 9110, 10.2.3) asks for; 0 if it makes no sense.

    Args:
        header: A number of seconds, or a date.
        now: Seconds since 1970.
    """
    header = header.strip()
    if header.isascii() and header.isdecimal():
        return float(header[:12])
    try:
        date = parsedate_to_datetime(header)
        # A date without a zone, which HTTP does not have, is taken for UTC.
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0
