"""What the scheduler handles: requests, the parts that they are cut into, and the batches that these form.

Plain slotted classes: several of them are made for each request, so a dataclass per event would be felt. `Lane` and
`Queue` are opaque to everyone but the core (`scheduling.queue` defines them).
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from forebay_server.scheduling.events import PREDICT

if TYPE_CHECKING:
    from forebay_server.errors import ForebayError
    from forebay_server.scheduling.queue import Lane, Queue


class Level(IntEnum):
    """Jobs take only the slots that no online request wants."""

    ONLINE = 0
    JOB = 1


class Priority(IntEnum):
    """Numbered as in the contract."""

    HIGH = 1
    NORMAL = 2
    LOW = 3


PRIORITY_WEIGHTS: Mapping[int, float] = {Priority.HIGH: 8.0, Priority.NORMAL: 2.0, Priority.LOW: 1.0}


class Reason(IntEnum):
    """Why a batch started, numbered as in the contract."""

    FULL = 1
    IDLE = 2
    DELAY = 3
    DEADLINE = 4
    DRAIN = 5


class State(IntEnum):
    """Where a request is in its life; `scheduling.core` has the table of transitions."""

    NEW = 0
    WAITING = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5
    EXPIRED = 6
    REFUSED = 7


class Request:
    """A request to one model. Those who admit requests subclass it and override `succeed` and `fail`.

    Exactly one of the two is called, once, by the dispatcher, for each request that was admitted and not cancelled;
    neither for one that was refused (the refusal is the answer of `admit`) or cancelled. They must not raise.
    """

    method: ClassVar[int] = PREDICT
    """How requests of the class come in, for telemetry: an index into `events.METHODS`."""
    cost: float
    """Engine seconds that its waiting rows stand for. Set by the core at admission, like the next three."""
    due: float
    """Its place in the order of its flow, never later than its deadline (`scheduling.queue`)."""
    expected: float
    """The wait that was predicted for it, in seconds."""
    queue: "Queue"
    """Where it waits."""

    __slots__ = (
        "arrival",
        "cost",
        "deadline",
        "due",
        "expected",
        "inputs",
        "lane",
        "level",
        "nbytes",
        "parameters",
        "priority",
        "queue",
        "rows",
        "scheduled",
        "shapes",
        "state",
        "tenant",
        "trace",
    )

    def __init__(
        self,
        lane: "Lane",
        rows: int,
        nbytes: int,
        deadline: float,
        inputs: Sequence[Any],
        *,
        arrival: float,
        tenant: str = "",
        priority: int = Priority.NORMAL,
        level: Level = Level.ONLINE,
        shapes: Sequence[tuple[int, ...]] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.lane = lane
        self.rows = rows
        """Rows; 1 for a model that is not batched. Never 0 (such requests are answered without the scheduler)."""
        self.nbytes = nbytes
        """What it holds in memory, in bytes."""
        self.deadline = deadline
        """Absolute monotonic seconds; `math.inf` only for jobs without one."""
        self.inputs = inputs
        """Per input, in the order of the specification: the raw little-endian bytes, or for a BYTES input a list of
        `bytes`. The core never looks at them."""
        self.arrival = arrival
        """When its message was taken, monotonic seconds."""
        self.tenant = tenant
        self.priority = priority
        self.level = level
        self.shapes = shapes
        """Shapes as sent, where they may differ from the lane's (padding to buckets); else None."""
        self.parameters = parameters
        """Values for the engine, the same for all of a lane; None if there are none."""
        self.state = State.NEW
        self.scheduled: Any = None
        """The core's own book-keeping: a `scheduling.queue.Split` if it runs in several parts."""
        self.trace: Any = None
        """Whatever a listener keeps with it; nobody here looks at it."""

    def succeed(self, outputs: Any, start: int, batch: "Batch") -> None:
        """The request ran.

        Args:
            outputs: An `engines.collate.BatchOutputs`.
            start: The row of `outputs` at which this request's rows begin; it has `self.rows` of them.
            batch: The batch that ran last for it, with its time stamps.
        """
        raise NotImplementedError

    together = False
    """Whether `succeed_all` does better than `succeed` for each."""
    alike: Any = None
    """The same for those that `succeed_all` may treat alike; None: for none."""

    @classmethod
    def succeed_all(cls, done: list[Any], outputs: Any) -> list[Any]:
        """Requests ran, of which the first is of this class and `together`: as `succeed` for those that it can do.

        Args:
            done: (request, its row in the outputs, None, or its pieces if it ran in parts) for each.
            outputs: As for `succeed`.

        Returns:
            Those of `done` that are left.
        """
        raise NotImplementedError

    def fail(self, error: "ForebayError") -> None:
        """The request has no result."""
        raise NotImplementedError


class Part:
    """A run of rows of one request within one batch. Most requests are one part."""

    __slots__ = ("request", "rows", "start")

    def __init__(self, request: Request, start: int, rows: int) -> None:
        self.request = request
        self.start = start
        """The first of the request's rows that is in this part."""
        self.rows = rows


class Batch:
    """What one instance runs at a time. The core makes it, the runner stamps the times (monotonic seconds)."""

    __slots__ = (
        "collated",
        "completed",
        "dispatched",
        "finished",
        "instance",
        "lane",
        "padded_rows",
        "parts",
        "predicted",
        "reason",
        "rows",
        "scheduled",
    )

    def __init__(
        self,
        instance: int,
        lane: "Lane",
        parts: list[Part],
        rows: int,
        padded_rows: int,
        reason: Reason,
        predicted: float | None,
        dispatched: float,
    ) -> None:
        self.instance = instance
        self.lane = lane
        self.parts = parts
        self.rows = rows
        """Rows of requests."""
        self.padded_rows = padded_rows
        """Rows that the engine is given: `rows` and the padding."""
        self.reason = reason
        self.predicted = predicted
        """Engine seconds by the cost model; None before anything is known."""
        self.dispatched = dispatched
        """When the core formed it."""
        self.collated = 0.0
        """When the engine was called."""
        self.finished = 0.0
        """When the engine had answered."""
        self.completed = 0.0
        """When the dispatcher began to hand out its results."""
        self.scheduled: Any = None
        """The core's own book-keeping: a `scheduling.bisection.Inquest` if it runs again after a failure."""
