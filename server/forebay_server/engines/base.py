"""The port that every engine implements, and what it may raise.

An `Engine` is one loaded model; it makes `Instance`s, each of which runs one batch at a time. (TensorRT's engine and
its execution contexts; an ONNX Runtime session may be shared by all instances.)

Threads: `load`, `instance` and `Engine.close` are called by the loader thread of the model, never at the same time. All
methods of one `Instance` are called by one thread at a time: first the loader (warm-up), then for good the instance's
worker thread or the dispatcher. Different instances run at the same time.

Ownership: the arrays of an `EngineBatch` are the caller's and may be overwritten after `infer` has returned; an engine
keeps no view of them. The arrays that `infer` returns belong to the caller until it drops them: an engine that reuses
its output buffers must copy, and outputs must not alias inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from forebay_server.config.tree import BatchingConfig, BucketsConfig
from forebay_server.engines.preparation import Preparation
from forebay_server.tensors import Array, ModelSpec

ParameterValue = bool | int | float | str

NO_PARAMETERS: Mapping[str, ParameterValue] = {}


class EngineBatch:
    """What an instance runs: the stacked inputs of many requests."""

    __slots__ = ("inputs", "parameters", "rows")

    def __init__(
        self, inputs: Sequence[Array], rows: int, parameters: Mapping[str, ParameterValue] = NO_PARAMETERS
    ) -> None:
        self.inputs = inputs
        """One array per input in the order of the specification, C-contiguous; if batched of (padded rows, ...)."""
        self.rows = rows
        """Rows that hold requests; those after them are padding. 1 if the model is not batched."""
        self.parameters = parameters
        """Equal for all requests of the batch."""


class Instance(Protocol):
    """One runner of batches."""

    def stage(self, shapes: Sequence[tuple[int, ...]]) -> Sequence[Array] | None:
        """Gives out buffers to put the next batch together in, or None if any memory will do.

        One per input, of exactly these shapes (rows included). An engine with pinned memory gives out views on it,
        valid until `infer` has returned.
        """

    def infer(self, batch: EngineBatch) -> Sequence[Array]:
        """Runs a batch.

        Returns:
            One array per output in the order of the specification; of a batched model at least `batch.rows` rows.

        Raises:
            RejectInput: The model refuses some rows; the others may be run again.
            OutOfMemory: The batch is too large for the device now; a smaller one may pass.
            EngineDead: This instance will never answer again.
            Exception: Anything else is a fault that some row may have caused; the caller bisects.
        """

    def close(self) -> None:
        """Lets go of what the instance holds."""


class OverlappingInstance(Instance, Protocol):
    """An instance that takes the next batch while others are still on their way through it.

    If its depth is over 1, then once it serves `stage` and `issue` are called by one thread, in turn for one batch
    after the other, and `collect` by another one, for the batches in the order in which they were issued; `infer` is
    then the loader's only. `close` comes when nothing is in flight and both threads have done with it.
    """

    depth: int
    """The most batches that may be issued and not collected; 1: `infer` alone is called."""
    device: str
    """Where it runs, as `Engine.device` says it; the instances of an engine may be spread over several."""

    def issue(self, batch: EngineBatch) -> object:
        """Starts a batch and does not wait for it. Raises as `infer` does; then nothing is to be collected.

        Returns:
            What `collect` is to be given. Until that has returned, the arrays of the batch stay as they are.
        """

    def collect(self, ticket: object) -> Sequence[Array]:
        """Waits for a batch. Returns and raises as `infer` does."""


class Engine(Protocol):
    """One loaded model."""

    name: str
    """As in the entry point: `onnxruntime`, `python`, `synthetic`, `tensorrt`, `torch`."""

    version: str
    """Of the library behind it; part of the key under which measured costs are kept."""

    device: str
    """`cpu`, `cuda:0`; part of the same key."""

    always_worker: bool
    """Whether batches must run in a worker thread however fast they are (GPU engines, engines that may hang)."""

    batch_sizes: Sequence[int]
    """Sizes that batches are padded up to (captured graphs, profiles, a fixed dimension), ascending; empty: any."""

    holds_gil: bool
    """Whether a batch keeps the GIL from its beginning to its end: then a thread of its own gains nothing. Known after
    `load`."""

    gives_way: bool
    """Whether a batch is computed on the CPU by the thread that calls `infer`, by no other, and without the GIL: then
    one in a thread that can wait costs those in other threads nothing. So jobs may have instances of their own, as
    many again as it was told to make; they must not cost much memory. Known after `load`."""

    max_batch_size: int
    """The most rows that it bears, where that is not the largest of `batch_sizes`; 0: it does not say. Known after
    `load`."""

    def load(self) -> ModelSpec:
        """Opens the model and says what it expects. Called once, before anything else.

        Raises:
            ModelLoadError: The file can't be served; the text says why, for the operator.
        """

    def instance(self, index: int) -> Instance:
        """Makes an instance."""

    def close(self) -> None:
        """Lets go of everything. All instances are closed before."""


@runtime_checkable
class Preparing(Protocol):
    """An engine that prepares inputs itself, on its device, if it is told so."""

    def prepare(self, inputs: Sequence[Preparation | None]) -> bool:
        """Lets all instances take what callers send. Called once, after `load` and before the first `instance`.

        Args:
            inputs: One per input of the specification; None where the model takes what callers send.

        Returns:
            Whether it does; if not, the inputs are prepared on the CPU.
        """


class EngineOptions(Protocol):
    """What a factory is told beside the path."""

    instances: int
    threads: int
    """Threads of one instance; 0: the CPU quota shared among the instances."""
    device: str
    """Where it is to run: `cpu`, or `cuda:` and the GPU's index. One engine is on one device."""
    memory: int
    """Bytes that it may take on a GPU, for buffers and its own arena; 0: what there is."""
    options: Mapping[str, ParameterValue]
    """The engine's own options, from `[engine]` in the model's TOML."""
    batching: BatchingConfig
    """What the owner has set of batches, for engines that are built for certain sizes."""
    buckets: BucketsConfig
    """What the owner has set of shapes, for engines that are built for certain ones."""
    cache_dir: Path | None
    """Where an engine may keep what took long to make; None: nowhere."""

    @property
    def progress(self) -> Callable[[str], None]:
        """Told, in a few words, what `load` is doing if that takes long. For any thread."""

    @property
    def stopping(self) -> Callable[[], bool]:
        """Whether nobody wants the model any more, so that a `load` that takes long may end. For any thread."""


class EngineFactory(Protocol):
    """What an entry point in the group `forebay.engines` refers to."""

    suffixes: Sequence[str]
    """File suffixes that this engine takes, such as `.onnx`; empty: only by name."""

    devices: Sequence[str]
    """Kinds of device that it runs on (`cpu`, `cuda`), what it is made for first."""

    def __call__(self, path: Path | str, options: EngineOptions) -> Engine:
        """Makes an engine; opens nothing yet. `path` is a `str` only for engines without a file (`module:object`)."""


class ModelLoadError(Exception):
    """A model can't be loaded. The text is for the operator, not for callers."""


class RejectInput(Exception):
    """A model refuses an input. Its text reaches the caller.

    Args:
        message: A sentence for the caller.
        rows: The rows of the batch that are refused; None if the model can't tell, and the server bisects.
    """

    def __init__(self, message: str, rows: Sequence[int] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.rows = rows


class OutputMismatch(Exception):
    """A model returned something else than its specification promises. A fault of the model, not of the input."""


class OutOfMemory(Exception):
    """The device has no memory for a batch of this size now."""


class EngineDead(Exception):
    """The instance can't go on, whatever it is given.

    Args:
        message: Why, for the log.
        device: The device that is lost with it, as `Engine.device` calls it, if all instances there are lost too.
    """

    def __init__(self, message: str = "", device: str = "") -> None:
        super().__init__(message)
        self.device = device
