"""Which buckets of a model can be named beforehand: for warm-up, and for engines that are built for certain shapes.

Pure; `models.served.Buckets` says which bucket a request falls into.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final

from forebay_server.errors import ConfigError
from forebay_server.tensors import FREE, Bucket

MOST: Final = 64


def named(
    row_shapes: Sequence[tuple[int, ...]], ladders: Sequence[Sequence[Sequence[int]] | None], limit: int = MOST
) -> list[Bucket]:
    """The buckets that can be named beforehand, smallest first; none if shapes are open.

    Args:
        row_shapes: Per input its shape without the batch dimension.
        ladders: Per input the shapes that its requests are padded up to, smallest first, if there are such.
        limit: At most so many.
    """
    choices: list[Sequence[tuple[int, ...]]] = []
    for shape, ladder in zip(row_shapes, ladders, strict=True):
        if ladder:
            choices.append([tuple(step) for step in ladder])
        elif FREE not in shape:
            choices.append([shape])
        else:
            return []
    lengths = {len(choice) for choice in choices if len(choice) > 1}
    if len(lengths) <= 1:  # inputs with equally many shapes (ids and their mask) go up together
        steps = lengths.pop() if lengths else 1
        together = [[choice[min(step, len(choice) - 1)] for choice in choices] for step in range(steps)]
        return [tuple(shapes) for shapes in together][:limit]
    return [tuple(shapes) for shapes, _ in zip(product(*choices), range(limit), strict=False)]


def check(row_shapes: Mapping[str, tuple[int, ...]], ladders: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Whether a model can have such shapes.

    Args:
        row_shapes: Per input name its shape without the batch dimension.
        ladders: Per input name the shapes to pad up to, as the owner has set them.

    Raises:
        ConfigError: They are of an unknown input, or it can't have them.
    """
    for name, ladder in ladders.items():
        if name not in row_shapes:
            raise ConfigError(f"buckets.shapes: the model has no input {name!r}; it has {', '.join(row_shapes)}")
        wanted = row_shapes[name]
        for shape in ladder:
            if len(shape) != len(wanted) or any(
                length < 1 or most not in (FREE, length) for length, most in zip(shape, wanted, strict=True)
            ):
                raise ConfigError(
                    f"buckets.shapes: {list(shape)} does not fit the input {name!r}, whose rows are {list(wanted)}"
                )
