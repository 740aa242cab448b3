"""One version of a model as the server offers it, from loading to unloading.

Written by the dispatcher thread only (`Catalogue` is how), read there on every request.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from forebay_server.config.tree import BucketsConfig, ModelConfig
from forebay_server.engines import buckets
from forebay_server.errors import ConfigError, InvalidRequest
from forebay_server.tensors import FREE, NUMPY_DTYPES, Bucket, ModelSpec

if TYPE_CHECKING:
    from forebay_server.models.loaded import Loaded

NO_SPEC: Final = ModelSpec(inputs=(), outputs=(), batched=False)


class ModelState(IntEnum):
    """Where a version is in its life, numbered as in the contract."""

    LOADING = 1
    WARMING = 2
    READY = 3
    FAILED = 4
    UNLOADING = 5
    UNLOADED = 6


class RunMode(IntEnum):
    """On which thread batches run, numbered as in the contract."""

    UNSPECIFIED = 0
    INLINE = 1
    WORKER = 2


class Buckets:
    """Which bucket a request's shapes fall into.

    Args:
        spec: The model's.
        config: What the model's owner has set: per input name the shapes to pad to.

    Raises:
        ConfigError: The settings name an unknown input or shapes that it can't have.
    """

    __slots__ = ("_ladders", "_names", "_row_shapes", "only")

    def __init__(self, spec: ModelSpec, config: BucketsConfig) -> None:
        lead = 1 if spec.batched else 0
        self._names = [tensor.name for tensor in spec.inputs]
        self._row_shapes = [tensor.shape[lead:] for tensor in spec.inputs]
        self._ladders: list[list[tuple[int, ...]] | None] = [None] * len(spec.inputs)
        buckets.check(dict(zip(self._names, self._row_shapes, strict=True)), config.shapes)
        _check_padding(spec, config)
        for name, shapes in config.shapes.items():
            self._ladders[self._names.index(name)] = [tuple(shape) for shape in shapes]
        outputs = {tensor.name: len(tensor.shape) - lead for tensor in spec.outputs}
        ranks = [len(shape) for shape in self._row_shapes]
        for name, follows in config.outputs.items():
            if name not in outputs:
                raise ConfigError(f"buckets.outputs: the model has no output {name!r}; it has {', '.join(outputs)}")
            if len(follows) != outputs[name] or any(not -1 <= n < max(ranks, default=0) for n in follows):
                raise ConfigError(f"buckets.outputs: {name!r} has {outputs[name]} dimensions, each follows one or -1")
        fixed = all(FREE not in shape for shape in self._row_shapes) and not config.shapes
        self.only: Bucket | None = tuple(self._row_shapes) if fixed else None
        """The bucket of every request, if there is but one."""

    def known(self, limit: int = buckets.MOST) -> list[Bucket]:
        """The buckets that can be named beforehand, smallest first, at most `limit`; none if shapes are open."""
        if self.only is not None:
            return [self.only]
        return buckets.named(self._row_shapes, self._ladders, limit)

    def of(self, shapes: Sequence[tuple[int, ...]]) -> Bucket:
        """The bucket for a request's shapes, each without the batch dimension and valid by the specification.

        Raises:
            InvalidRequest: An input is larger than its largest bucket.
        """
        if self.only is not None:
            return self.only
        bucket = []
        violations = []
        for index, (shape, ladder) in enumerate(zip(shapes, self._ladders, strict=True)):
            if ladder is None:
                bucket.append(shape)
                continue
            for step in ladder:
                if all(length <= most for length, most in zip(shape, step, strict=True)):
                    bucket.append(step)
                    break
            else:
                sentence = f"{list(shape)} of {self._names[index]!r} is over its largest bucket, {list(ladder[-1])}"
                violations.append((f"inputs[{index}].shape", sentence))
        if violations:
            raise InvalidRequest(violations)
        return tuple(bucket)


def _check_padding(spec: ModelSpec, config: BucketsConfig) -> None:
    """Refuses a pad value that integers would hold as some other number."""
    for tensor in spec.inputs:
        dtype = NUMPY_DTYPES[tensor.data_type]
        if tensor.name not in config.shapes or dtype.kind not in "iu":
            continue
        limits = np.iinfo(dtype)  # type: ignore[type-var]  # of integers, which its type does not say
        value = config.pad_value
        if not (value.is_integer() and limits.min <= value <= limits.max):
            kind = tensor.data_type.name
            raise ConfigError(f"buckets.pad_value: the input {tensor.name!r} is {kind}, which can't hold {value:g}")


class Served:
    """A version of a model.

    Args:
        name: The model's.
        version: The number.
        labels: Labels that this version is given.
        config: Its settings.
    """

    __slots__ = (
        "batch_sizes",
        "best_batch_size",
        "buckets",
        "config",
        "engine_name",
        "instances",
        "key",
        "labels",
        "max_batch_size",
        "name",
        "ready_time",
        "run_mode",
        "spec",
        "state",
        "state_message",
        "unbatched_because",
        "version",
    )

    def __init__(self, name: str, version: int, config: ModelConfig, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.version = version
        self.key = (name, version)
        self.labels = tuple(labels)
        self.config = config
        self.state = ModelState.LOADING
        self.state_message = ""
        self.spec = NO_SPEC
        """Empty until it is ready."""
        self.engine_name = ""
        self.max_batch_size = 0
        self.best_batch_size = 0
        self.batch_sizes: Sequence[int] = ()
        self.unbatched_because = ""
        self.instances = 0
        self.run_mode = RunMode.UNSPECIFIED
        self.ready_time: float | None = None
        """Seconds since the epoch."""
        self.buckets: Buckets | None = None

    def adopt(self, loaded: "Loaded") -> None:
        """Takes over what loading has found out. `Catalogue.set_state` makes it visible."""
        self.spec = loaded.spec
        self.buckets = loaded.buckets
        self.engine_name = loaded.engine_name
        self.max_batch_size = loaded.max_batch_size
        self.best_batch_size = loaded.best_batch_size
        self.batch_sizes = loaded.batch_sizes
        self.unbatched_because = loaded.unbatched_because
        self.instances = len(loaded.instances)
        self.run_mode = RunMode.INLINE if loaded.inline else RunMode.WORKER
        self.config = loaded.config

    def bucket_of(self, shapes: Sequence[tuple[int, ...]]) -> Bucket:
        """The bucket that a request's shapes fall into: see `Buckets.of`."""
        buckets = self.buckets
        if buckets is None:
            return tuple(shapes)
        return buckets.only or buckets.of(shapes)
