"""A `torch.nn.Module` that a factory makes, in a Python module of the operator's.

The factory says what its module takes and gives, as functions of the python engine do:

    @model(inputs={"x": ("FP32", (-1, 64))}, outputs={"y": ("FP32", (-1, 10))})
    def digits(checkpoint="digits.safetensors"):
        ...
        return module

It is called once per instance, with the engine's options as keywords. The module's `forward` gets one tensor per input,
in this order, on its device, and gives back one per output: a tensor, a sequence in the order of the outputs, or a
mapping by their names. It runs in inference mode, after `eval()`, and must not keep what it was given.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forebay_server.engines.base import ModelLoadError, OutputMismatch, ParameterValue
from forebay_server.engines.objects import guarded, resolve
from forebay_server.engines.torch.cpu import Run
from forebay_server.engines.torch.staging import TORCH_DTYPES
from forebay_server.tensors import ModelSpec


class Factory:
    """A factory, and what it says of its modules.

    Args:
        path: `module:object` or `folder/module.py:object`.
        folder: Where the module is looked for beside PYTHONPATH; empty: nowhere.

    Raises:
        ModelLoadError: It can't be imported, or doesn't say what its modules take and give.
    """

    def __init__(self, path: str, folder: str) -> None:
        self._path = path
        self._make: Callable[..., Any] = resolve(path, folder)
        if not callable(self._make):
            raise ModelLoadError(f"{path}: it can't be called, so it makes no module")
        spec = getattr(self._make, "spec", None)
        if not isinstance(spec, ModelSpec):
            raise ModelLoadError(
                f"{path}: it doesn't say what its module takes and gives; "
                "decorate it with forebay_server.engines.python.model(inputs=..., outputs=...)"
            )
        for tensor in (*spec.inputs, *spec.outputs):
            if tensor.data_type not in TORCH_DTYPES:
                raise ModelLoadError(f"{path}: {tensor.name!r} is {tensor.data_type.name}, which torch has not")
        self.spec = spec

    def module(self, torch: Any, device: str, arguments: Mapping[str, ParameterValue]) -> Any:
        """Makes a module, on a device and ready to run.

        Raises:
            ModelLoadError: The factory raised, or gave something else.
        """
        made = guarded(self._path, "the factory", lambda: self._make(**arguments))
        if not isinstance(made, torch.nn.Module):
            raise ModelLoadError(f"{self._path}: the factory gave a {type(made).__name__}, not a torch.nn.Module")
        return guarded(self._path, f"moving its module to {device}", lambda: made.to(device).eval())


def runner(torch: Any, module: Any, spec: ModelSpec) -> Run:
    """What computes a batch by a module."""
    names = [tensor.name for tensor in spec.outputs]

    def run(tensors: list[Any]) -> Sequence[Any]:
        with torch.inference_mode():
            return _in_order(module(*tensors), names, torch.Tensor)

    return run


def _in_order(returned: Any, names: Sequence[str], tensor: type) -> Sequence[Any]:
    if isinstance(returned, tensor):
        returned = [returned]
    elif isinstance(returned, Mapping):
        if set(returned) != set(names):
            raise OutputMismatch(f"it returned {sorted(map(str, returned))}, not {list(names)}")
        returned = [returned[name] for name in names]
    if not isinstance(returned, Sequence) or not all(isinstance(output, tensor) for output in returned):
        raise OutputMismatch(f"it returned a {type(returned).__name__} that does not hold tensors alone")
    return returned
