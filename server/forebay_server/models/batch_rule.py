"""Whether dimension 0 of a model's tensors is the batch.

By itself only if the engine says so: it is free, and of the same name in all inputs and outputs. The model's owner can
say otherwise; then a fixed length means batches of just that many rows. Called by the loader.
"""

from dataclasses import replace

from forebay_server.config.tree import BatchingConfig
from forebay_server.engines.base import ModelLoadError
from forebay_server.tensors import FREE, ModelSpec

UNBATCHED = "dimension 0 is not free, or not the same in all inputs and outputs"


def apply(spec: ModelSpec, config: BatchingConfig) -> tuple[ModelSpec, tuple[int, ...], str]:
    """The specification as it is served.

    Returns:
        The specification; the only batch size that the model takes, if dimension 0 is fixed; and why the model is not
        batched, if it is not.

    Raises:
        ModelLoadError: The settings want a batch dimension that the model does not have.
    """
    if config.batch_dimension == "none":
        return replace(spec, batched=False), (), "batch_dimension is none"
    if config.batch_dimension == "auto":
        return spec, (), "" if spec.batched else UNBATCHED
    lengths = set()
    for tensor in (*spec.inputs, *spec.outputs):
        if not tensor.shape:
            raise ModelLoadError(f"batching.batch_dimension is first, but {tensor.name!r} is a scalar")
        lengths.add(tensor.shape[0])
    fixed = lengths - {FREE}
    if len(fixed) > 1:
        raise ModelLoadError(
            f"batching.batch_dimension is first, but dimension 0 has the lengths {', '.join(map(str, sorted(fixed)))}"
        )
    freed = ModelSpec(
        inputs=tuple(replace(tensor, shape=(FREE, *tensor.shape[1:])) for tensor in spec.inputs),
        outputs=tuple(replace(tensor, shape=(FREE, *tensor.shape[1:])) for tensor in spec.outputs),
        batched=True,
    )
    return freed, tuple(fixed), ""
