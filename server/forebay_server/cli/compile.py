"""`forebay compile`: makes a package for the torch engine of an exported program."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forebay_server.cli import display
from forebay_server.cli.progress import steps
from forebay_server.errors import ConfigError

if TYPE_CHECKING:
    from forebay_server.engines.torch.profile import Profile, Tensor


@click.command("compile")
@click.argument("program", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The package; its name ends with .pt2.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where it is to run. [where it was exported]")
@click.option(
    "--max-batch-size",
    "max_batch",
    type=click.IntRange(1),
    metavar="ROWS",
    help="The most in a batch. [what it was exported for, else 128]",
)
@click.option("--outputs", default="", metavar="NAMES", help="Names of the outputs, comma-separated. [the program's]")
def compile_(program: Path, output: Path, device: str | None, max_batch: int | None, outputs: str) -> None:
    """Compile an exported PyTorch program into a package.

    PROGRAM is what torch.export.save has written. The package is native code for this kind of processor or GPU and for
    this version of torch; it says so itself, and what it takes, and is refused elsewhere. It is compared with the
    program on the example inputs before it takes the place of OUTPUT. Takes torch (forebay[torch]) and a C++ compiler.

    \b
      forebay compile digits-exported.pt2 -o digits.pt2
      forebay serve digits.pt2
    """
    if output.suffix != ".pt2":
        raise ConfigError(f"{output}: the name of a package ends with .pt2")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: no such folder")
    from forebay_server.engines.base import ModelLoadError
    from forebay_server.engines.torch.compiling import compile_program

    names = [name.strip() for name in outputs.split(",")] if outputs else []
    try:
        with steps() as tell:
            made = compile_program(
                program, output, device=device or "", max_batch=max_batch or 0, names=names, tell=tell
            )
    except ModelLoadError as error:
        raise ConfigError(str(error)) from error
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, compiled by torch {made.torch}")
    for what, tensors in (("takes", made.inputs), ("gives", made.outputs)):
        click.echo(f"{what} {', '.join(_described(tensor, made) for tensor in tensors)}")


def _described(tensor: "Tensor", made: "Profile") -> str:
    """A tensor's name, type and shape, such as `x FP32[1 to 128, 64]`."""
    lengths = (str(made.dimensions[n]) if isinstance(n, str) else "?" if n is None else str(n) for n in tensor.shape)
    return display.tensor(tensor.name, tensor.data_type, lengths)
