"""Makes a package of an exported program: what `forebay compile` does.

What a package says of itself (`profile`) is read off the program: names, types, and which lengths are free and within
what range. The program is the operator's own, as everything that is served: torch may run code of its maker to read it.
"""

import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.torch import archive, library, profile
from forebay_server.engines.torch.profile import Profile, Range, Tensor
from forebay_server.engines.torch.staging import TORCH_DTYPES
from forebay_server.tensors import MAX_DIMENSION

DEFAULT_MAX_BATCH: Final = 128
UNBOUNDED_FROM: Final = 2
"""Export says that a free length is at least 2 where it was told nothing; a batch of one row works all the same, and at
warm-up it is compared with larger ones."""

RELATIVE: Final = {"float16": 2e-2, "bfloat16": 6e-2}
"""How far a package's answers may be from the program's; others: 1e-3. It computes in another order."""

_DATA_TYPES: Final = {f"torch.{name}": data_type.name for data_type, name in TORCH_DTYPES.items()}

Tell = Callable[[str], None]
"""Told of each step in a few words."""


def compile_program(
    source: Path,
    output: Path,
    *,
    device: str = "",
    max_batch: int = 0,
    names: Sequence[str] = (),
    tell: Tell = lambda _words: None,
) -> Profile:
    """Compiles an exported program for this machine, compares the package with the program, and puts it in its place.

    Args:
        source: What `torch.export.save` has written.
        output: The package, which replaces what is there once it is complete.
        device: `cpu` or `cuda`; empty: where the program was exported.
        max_batch: The most rows in a batch; 0: what the program allows, `DEFAULT_MAX_BATCH` if that has no end.
        names: Of the outputs; empty: the program's own.
        tell: Told of each step.

    Raises:
        ModelLoadError: It can't be done; the text is one sentence for the operator.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ModelLoadError(f"compiling takes a C++ compiler, and there is no {compiler} here (CXX names it)")
    tell("importing torch")
    torch = library.imported()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own code
        tell(f"reading {source}")
        program = _program(torch, source, device)
        made = profile_of(
            program.run_decompositions({}),  # only then its signature tells what it changes
            torch=str(torch.__version__),
            instructions=sorted(library.instructions_here()),
            max_batch=max_batch,
            names=names,
        )
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
            package = Path(folder, "model.pt2")
            tell(f"compiling for {_device_of(program)}")
            _compile(torch, program, package, made)
            tell("comparing the package with the program")
            _compare(torch, program, package)
            archive.read(package)
            package.replace(output)
        return made


def profile_of(
    program: Any, *, torch: str, instructions: Sequence[str], max_batch: int = 0, names: Sequence[str] = ()
) -> Profile:
    """What an exported program takes and gives.

    Args:
        program: A `torch.export.ExportedProgram`, functional: see its `run_decompositions`.
        torch: The version of torch.
        instructions: What the compiler may use of the processor.
        max_batch: As for `compile_program`.
        names: As for `compile_program`.

    Raises:
        ModelLoadError: It can't be served.
    """
    signature = program.graph_signature
    if signature.buffers_to_mutate:
        changed = ", ".join(sorted(signature.buffers_to_mutate.values()))
        raise ModelLoadError(f"the program changes its own state ({changed}), so callers would see each other")
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    ranges = {str(symbol): _range(bounds) for symbol, bounds in program.range_constraints.items()}
    inputs = [_input(str(name), values.get(name), ranges) for name in signature.user_inputs]
    free = {length for tensor in inputs for length in tensor.shape if isinstance(length, str)}
    given = list(signature.user_outputs)
    called = _output_names(program.call_spec.out_spec, len(given), names)
    outputs = [_output(name, values.get(value), free) for name, value in zip(called, given, strict=True)]
    try:
        made = Profile(
            format=profile.FORMAT,
            torch=torch,
            instructions=tuple(instructions),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            dimensions={name: ranges[name] for name in sorted(free)},
        )
    except ValueError as error:
        raise ModelLoadError(f"the program can't be served: {error}") from error
    return _bounded(made, max_batch)


def _bounded(made: Profile, max_batch: int) -> Profile:
    """With an end to its batches."""
    if made.batch is None:
        if max_batch:
            raise ModelLoadError(
                "--max-batch-size: the program has no batch dimension: dimension 0 must be free (torch.export.Dim), "
                "and the same in all inputs and outputs"
            )
        return made
    bounds = made.dimensions[made.batch]
    if bounds.least > UNBOUNDED_FROM:
        raise ModelLoadError(f"the program takes batches of {bounds} rows, but must take one row; export it with min=1")
    if bounds.most is not None and max_batch > bounds.most:
        raise ModelLoadError(
            f"--max-batch-size: {max_batch} is above {bounds.most}, which the program was exported for"
        )
    rows = Range(1, max_batch or bounds.most or DEFAULT_MAX_BATCH)
    return msgspec.structs.replace(made, dimensions={**made.dimensions, made.batch: rows})


def _range(bounds: Any) -> Range:
    """The range of a symbol's `ValueRanges`."""
    least, most = _integer(bounds.lower) or 0, _integer(bounds.upper)
    return Range(least, None if most is None or most > MAX_DIMENSION else most)


def _integer(bound: Any) -> int | None:
    try:
        return int(bound)
    except (TypeError, ValueError, OverflowError, AttributeError):  # one of sympy's infinities
        return None


def _input(name: str, value: Any, ranges: Mapping[str, Range]) -> Tensor:
    data_type = _data_type(f"the input {name!r}", value)
    shape: list[int | str | None] = []
    for position, length in enumerate(value.shape):
        text = str(length)
        if not isinstance(length, int) and text not in ranges:
            raise ModelLoadError(
                f"dimension {position} of the input {name!r} is {text}, which must be a number or free by itself"
            )
        shape.append(length if isinstance(length, int) else text)
    return Tensor(name, data_type, tuple(shape))


def _output(name: str, value: Any, free: set[str]) -> Tensor:
    data_type = _data_type(f"the output {name!r}", value)
    lengths = (length if isinstance(length, int) else str(length) for length in value.shape)
    return Tensor(name, data_type, tuple(n if isinstance(n, int) or n in free else None for n in lengths))


def _data_type(what: str, value: Any) -> str:
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise ModelLoadError(f"{what} of the program is not a tensor")
    if str(value.dtype) not in _DATA_TYPES:
        raise ModelLoadError(f"{what} of the program is of the type {value.dtype}, which can't be served")
    return _DATA_TYPES[str(value.dtype)]


def _output_names(out_spec: Any, count: int, names: Sequence[str]) -> list[str]:
    """What was asked for, else the keys of a mapping, else `output` or `output_0`, `output_1`, ..."""
    if names:
        if len(names) != count or len(set(names)) != count:
            raise ModelLoadError(f"--outputs: {count} different names are needed, not {', '.join(names)}")
        return list(names)
    returned = out_spec.unflatten(list(range(count)))
    if isinstance(returned, Mapping) and sorted(map(str, returned.values())) == sorted(map(str, range(count))):
        by_place = {place: str(key) for key, place in returned.items()}
        return [by_place[place] for place in range(count)]
    return ["output"] if count == 1 else [f"output_{place}" for place in range(count)]


def _program(torch: Any, source: Path, device: str) -> Any:
    if not zipfile.is_zipfile(source):
        raise ModelLoadError(f"{source}: not an exported program (torch.export.save), or not all of one")
    with zipfile.ZipFile(source) as opened:
        if archive.is_compiled(opened.namelist()):
            raise ModelLoadError(f"{source}: it is compiled already; this takes what torch.export.save has written")
    try:
        program = torch.export.load(str(source))
    except Exception as error:  # whatever torch says of it
        raise ModelLoadError(f"{source}: torch can't read it: {library.sentence(error)}") from error
    if program.example_inputs is None:
        raise ModelLoadError(f"{source}: it was exported without example inputs, which compiling needs")
    if device and device != _device_of(program):
        if device != "cpu":
            library.here(torch, device)
        from torch.export.passes import move_to_device_pass  # noqa: PLC0415  # heavy

        program = move_to_device_pass(program, device)
    return program


def _device_of(program: Any) -> str:
    """Where a program computes, as a kind: `cpu`, `cuda`."""
    values = [node.meta.get("val") for node in program.graph.nodes]
    return next((str(value.device.type) for value in values if hasattr(value, "device")), "cpu")


def _compile(torch: Any, program: Any, package: Path, made: Profile) -> None:
    from torch._inductor import aoti_compile_and_package  # noqa: PLC0415  # heavy; documented in spite of its name

    settings = {
        "aot_inductor.metadata": {profile.KEY: profile.encode(made)},
        # Without it the number of threads is that of this machine, for good.
        "cpp.dynamic_threads": True,
    }
    try:
        with torch.no_grad():
            aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
    except Exception as error:  # whatever the compilers say
        raise ModelLoadError(f"torch can't compile it: {library.sentence(error)}") from error


def _compare(torch: Any, program: Any, package: Path) -> None:
    """Runs both on the example inputs that the program was exported with."""
    from torch._inductor import aoti_load_package  # noqa: PLC0415  # as above

    arguments, keywords = program.example_inputs
    with torch.no_grad():
        expected = program.module()(*arguments, **keywords)
        found = aoti_load_package(str(package))(*arguments, **keywords)
    values = (node.meta.get("val") for node in program.graph.nodes)
    types = {str(value.dtype).removeprefix("torch.") for value in values if hasattr(value, "dtype")}
    tolerance = max((RELATIVE.get(name, 1e-3) for name in types), default=1e-3)
    try:
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    except AssertionError as error:
        raise ModelLoadError(f"the package's answers are not the program's: {library.sentence(error)}") from error
