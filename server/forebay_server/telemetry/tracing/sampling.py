"""Which requests get a span: decided at their beginning (head), and again at their end for the noteworthy (tail).

Pure: chance and time are arguments.
"""

from math import inf
from typing import Final, NamedTuple

from forebay_server.errors import ConfigError
from forebay_server.telemetry.tracing.context import Parent

DEFAULT: Final = "parentbased_traceidratio"
NAMES: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
"""As in OTEL_TRACES_SAMPLER."""

_LOW: Final = (1 << 64) - 1
BURST: Final = 2.0
"""Seconds for which the tail rule's allowance adds up."""


class Sampler(NamedTuple):
    """The decision at the beginning."""

    parent_based: bool
    """Whether the caller's decision counts, if there is one."""
    ratio: float
    """The part of all others that is sampled."""

    def wants(self, parent: Parent) -> bool:
        """Whether to sample what has a parent. Without its word, the trace's id decides, as in every SDK."""
        if self.parent_based:
            return parent.sampled
        return (parent.trace_id & _LOW) < round(self.ratio * (1 << 64))


def sampler(name: str, ratio: float) -> Sampler:
    """The sampler of a name.

    Args:
        name: One of `NAMES`.
        ratio: For those that take one.

    Raises:
        ConfigError: There is no such sampler.
    """
    if name not in NAMES:
        raise ConfigError(f"the sampler {name!r} is not known; there are {', '.join(NAMES)}")
    kind = name.removeprefix("parentbased_")
    return Sampler(name != kind, {"always_on": 1.0, "always_off": 0.0}.get(kind, ratio))


class Tail:
    """The rule for the end: which requests get a span though nobody wanted one, and how many of them.

    Args:
        slow: Seconds from which a request is slow; infinity: none is.
        per_second: Spans a second, at most: refusing a flood must not cost more than serving it.
    """

    __slots__ = ("_allowance", "_most", "_per_second", "_since", "slow", "suppressed")

    def __init__(self, slow: float, per_second: float) -> None:
        self.slow = slow if per_second else inf
        self.suppressed = 0
        """How many had no span because there were too many of them."""
        self._per_second = per_second
        self._most = max(1.0, per_second * BURST) if per_second else 0.0
        self._allowance = self._most
        self._since = -inf

    def take(self, now: float) -> bool:
        """Whether one more may have a span."""
        if self._since > -inf:
            self._allowance = min(self._most, self._allowance + (now - self._since) * self._per_second)
        self._since = now
        if self._allowance < 1.0:
            self.suppressed += 1
            return False
        self._allowance -= 1.0
        return True
