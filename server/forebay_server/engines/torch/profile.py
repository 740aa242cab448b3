"""What a compiled package takes and gives, and how long its free dimensions may be.

A package checks nothing itself: a batch over its maximum is computed all the same, and two inputs that should be
equally long but are not are read beyond their ends. So `forebay compile` writes a profile into the package, and the
engine holds every batch to it. It is JSON, in the package's metadata under the key `KEY`. No torch here.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from forebay_server.engines.base import RejectInput
from forebay_server.tensors import FREE, MAX_DIMENSION, MAX_RANK, DataType, ModelSpec, TensorSpec

KEY: Final = "forebay"
FORMAT: Final = 1

Shape = tuple[int, ...]
Lengths = dict[str, int]
"""What a batch's free dimensions are, by name."""


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lengths that a free dimension may have."""

    least: int
    most: int | None
    """None: any."""

    def __post_init__(self) -> None:
        if not 0 <= self.least <= (MAX_DIMENSION if self.most is None else self.most) <= MAX_DIMENSION:
            raise ValueError(f"no lengths from {self.least} to {self.most}")

    def __contains__(self, length: int) -> bool:
        return self.least <= length and (self.most is None or length <= self.most)

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.least} or more"
        return f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output."""

    name: str
    data_type: str
    """A name of `DataType`."""
    shape: tuple[int | str | None, ...]
    """A length, the name of a free dimension, or None for a length of an output that only the run tells."""

    def spec(self) -> TensorSpec:
        """As the rest of the server knows it."""
        shape = tuple(length if isinstance(length, int) else FREE for length in self.shape)
        return TensorSpec(name=self.name, data_type=DataType[self.data_type], shape=shape)


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `forebay compile` writes into a package."""

    format: int
    torch: str
    """The version of torch that has compiled it."""
    instructions: tuple[str, ...]
    """Extensions of the processor that the compiler may have used, as Linux names them."""
    inputs: tuple[Tensor, ...]
    """In the order in which the package takes them."""
    outputs: tuple[Tensor, ...]
    dimensions: dict[str, Range]
    """The free dimensions of the inputs, by name."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"its profile has the format {self.format}, not {FORMAT}")
        if not self.inputs or not self.outputs:
            raise ValueError("it has no inputs or no outputs")
        for tensor in (*self.inputs, *self.outputs):
            if tensor.data_type not in DataType.__members__ or tensor.data_type == DataType.BYTES.name:
                raise ValueError(f"{tensor.name!r} is of the type {tensor.data_type!r}, which can't be served")
            if len(tensor.shape) > MAX_RANK:
                raise ValueError(f"{tensor.name!r} has more than {MAX_RANK} dimensions")
            for length in tensor.shape:
                if isinstance(length, str) and length not in self.dimensions:
                    raise ValueError(f"{tensor.name!r} has a dimension {length!r} that is not described")
                if isinstance(length, int) and not 0 <= length <= MAX_DIMENSION:
                    raise ValueError(f"{tensor.name!r} has a dimension of the length {length}")
        if any(None in tensor.shape for tensor in self.inputs):
            raise ValueError("an input has a dimension of no length")

    @property
    def batch(self) -> str | None:
        """The name of the batch dimension: dimension 0 if it is free and the same of all inputs and outputs."""
        first = {tensor.shape[0] if tensor.shape else None for tensor in (*self.inputs, *self.outputs)}
        name = first.pop()
        return name if not first and isinstance(name, str) else None

    @property
    def max_batch_size(self) -> int:
        """The most rows in a batch; 0 if there is no such limit, or no batch."""
        return 0 if self.batch is None else self.dimensions[self.batch].most or 0

    def spec(self) -> ModelSpec:
        """As the rest of the server knows it."""
        return ModelSpec(
            inputs=tuple(tensor.spec() for tensor in self.inputs),
            outputs=tuple(tensor.spec() for tensor in self.outputs),
            batched=self.batch is not None,
        )

    def measure(self, shapes: Sequence[Shape]) -> Lengths:
        """Holds the whole shapes of a batch's inputs to the profile.

        Returns:
            The lengths of the free dimensions.

        Raises:
            RejectInput: They don't fit. It is said of the whole batch, whose rows have one shape.
        """
        lengths: Lengths = {}
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(tensor.shape):
                raise RejectInput(f"the input {tensor.name!r} has {len(shape)} dimensions, not {len(tensor.shape)}")
            for position, (wanted, length) in enumerate(zip(tensor.shape, shape, strict=True)):
                here = f"dimension {position} of the input {tensor.name!r} is {length}"
                if not isinstance(wanted, str):
                    if length != wanted:
                        raise RejectInput(f"{here}, not {wanted}")
                elif length not in self.dimensions[wanted]:
                    raise RejectInput(f"{here}, but the model was compiled for {self.dimensions[wanted]}")
                elif lengths.setdefault(wanted, length) != length:
                    raise RejectInput(f"{here}, but must be {lengths[wanted]}, as elsewhere in the request")
        return lengths

    def output_shapes(self, lengths: Lengths) -> list[Shape] | None:
        """The whole shapes of the outputs; None if some length is known only after the run."""
        shapes: list[Shape] = []
        for tensor in self.outputs:
            shape = [lengths.get(length) if isinstance(length, str) else length for length in tensor.shape]
            known = tuple(length for length in shape if length is not None)
            if len(known) != len(shape):
                return None
            shapes.append(known)
        return shapes


def encode(profile: Profile) -> str:
    """As text, for a package's metadata."""
    return msgspec.json.encode(profile).decode()


def decode(text: str) -> Profile:
    """The opposite of `encode`.

    Raises:
        ValueError: It is no profile, or one of another format; the text says what is wrong with it.
    """
    try:
        return msgspec.json.decode(text, type=Profile)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error).partition(" - at `$")[0]) from error
