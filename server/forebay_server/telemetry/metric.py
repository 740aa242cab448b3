"""What a metric is, and how Prometheus writes its name. `telemetry.names` has all that there are.

A metric has one name, in dots, as OpenTelemetry writes it; the name for Prometheus follows from it and the unit by the
rules of OpenTelemetry's specification (*Compatibility: Prometheus*).
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from forebay_server.telemetry.histogram import BOUNDS, place


class Kind(Enum):
    """What a metric is."""

    COUNTER = "counter"
    """A sum since the start of the process."""
    GAUGE = "gauge"
    """A value of now."""
    HISTOGRAM = "histogram"
    """A distribution since the start of the process."""


_WORDS: Final = {"s": "seconds", "By": "bytes", "1": "ratio"}

DURATIONS: Final = tuple(place(power) for power in range(-17, 10))
"""8 microseconds to 512 seconds in powers of two, as places in `histogram.BOUNDS`."""
RATIOS: Final = tuple(place(power) for power in (-3, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 3, 4))
"""An eighth to sixteen, finer around one, as places in `histogram.BOUNDS`."""
SIZES: Final = tuple(1 << power for power in range(13))
"""1 to 4096."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metric:
    """A metric.

    Attributes:
        name: In dots.
        kind: What it is.
        unit: By UCUM: `s`, `By`, `1`, or what is counted in braces.
        labels: The names of its labels, in order.
        help: One sentence.
        places: Of a histogram of durations or ratios, the places of its bounds in `histogram.BOUNDS`.
        sizes: Of a histogram of sizes, its bounds.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def word(self) -> str:
        """The unit as Prometheus writes it, at the end of `family`; empty: it has none."""
        return "" if self.unit == "1" and self.kind is Kind.COUNTER else _WORDS.get(self.unit, "")

    @property
    def family(self) -> str:
        """The name for Prometheus, without `_total`."""
        name, word = self.name.replace(".", "_"), self.word
        return f"{name}_{word}" if word and not name.endswith(f"_{word}") else name

    @property
    def prometheus(self) -> str:
        """The name for Prometheus, of a histogram without `_bucket`, `_sum`, `_count`."""
        return f"{self.family}_total" if self.kind is Kind.COUNTER else self.family

    @property
    def bounds(self) -> tuple[float, ...]:
        """Of a histogram, the inclusive upper bounds of its buckets, the last (infinity) left out."""
        return self.sizes or tuple(BOUNDS[index] for index in self.places)


def counter(name: str, unit: str, text: str, *, labels: tuple[str, ...] = ()) -> Metric:
    """A sum; `text` is its help."""
    return Metric(name=name, kind=Kind.COUNTER, unit=unit, help=text, labels=labels)


def gauge(name: str, unit: str, text: str, *, labels: tuple[str, ...] = ()) -> Metric:
    """A value of now."""
    return Metric(name=name, kind=Kind.GAUGE, unit=unit, help=text, labels=labels)


def durations(name: str, text: str, *, labels: tuple[str, ...] = ()) -> Metric:
    """A distribution of seconds."""
    return Metric(name=name, kind=Kind.HISTOGRAM, unit="s", help=text, labels=labels, places=DURATIONS)


def ratios(name: str, text: str, *, labels: tuple[str, ...] = ()) -> Metric:
    """A distribution of one thing over another."""
    return Metric(name=name, kind=Kind.HISTOGRAM, unit="1", help=text, labels=labels, places=RATIOS)


def sizes(name: str, unit: str, text: str, *, labels: tuple[str, ...] = ()) -> Metric:
    """A distribution of whole numbers."""
    return Metric(name=name, kind=Kind.HISTOGRAM, unit=unit, help=text, labels=labels, sizes=SIZES)
