"""Makes stand-ins for the CUDA libraries that PyPI's torch for Linux is linked with, so that it imports without them.

That wheel is the build for CUDA. The libraries are wheels of their own, gigabytes that nothing on a CPU calls; but the
dynamic linker wants each of them to be there, with each of the symbols in the version that is asked for. So there is a
stand-in by each of their names, whose functions answer "no device" (cudaErrorNoDevice). Only for tests of what torch
does on the CPU: `torch.cuda.is_available()` is then false, as on a machine without a driver.

Takes `readelf`, `nm` and `cc`, which compiling packages takes as well. On other systems, where torch is linked with no
such library, it does nothing.
"""

import ctypes
import re
import subprocess
import sys
import tempfile
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice

_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
_VERSIONS = re.compile(r"File: (\S+)|Name: (\S+)  Flags")
_CUDA = re.compile(
    r"(?:__cuda|cuda|cu[A-Z]|cublas|cudnn|cufft|curand|cusolver|cusparse|nccl|pnccl|nvrtc|nvJitLink|nvshmem|nvtx|cupti)\w*"
)
_HARMLESS = re.compile(r"__cuda\w*|cuda(?:GetLastError|PeekAtLastError)")
_TEXT = re.compile(r"\w+(?:ErrorString|ErrorName|StatusString|StatusName)\w*")


def main() -> None:
    """Puts the stand-ins beside torch's own libraries."""
    folder = Path(sys.argv[1])
    libraries = sorted(folder.glob("*.so"))
    if not libraries:
        sys.exit(f"{folder}: no libraries there")
    missing = sorted({name for library in libraries for name in needed(library) if not is_here(folder, name)})
    homes = {version: file for library in libraries for version, file in versions(library) if file in missing}
    symbols = sorted({pair for library in libraries for pair in undefined(library)})
    for number, name in enumerate(missing):
        # A symbol without a version may be in any of them.
        own = [(bare, version) for bare, version in symbols if homes.get(version, missing[0]) == name]
        build(folder / name, own if number == 0 else [pair for pair in own if pair[1]])
    print(f"{len(missing)} stand-ins with {len(symbols)} functions in {folder}")


def needed(library: Path) -> list[str]:
    """The libraries that one is linked with."""
    return _NEEDED.findall(output_of("readelf", "--dynamic", "--wide", str(library)))


def is_here(folder: Path, name: str) -> bool:
    """Whether a library is torch's own, or the system's."""
    if (folder / name).exists():
        return True
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def versions(library: Path) -> list[tuple[str, str]]:
    """The versions of symbols that a library asks for, each with the library that has to have it."""
    found, file = [], ""
    for named, version in _VERSIONS.findall(output_of("readelf", "--version-info", "--wide", str(library))):
        file = named or file
        if version:
            found.append((version, file))
    return found


def undefined(library: Path) -> list[tuple[str, str]]:
    """The functions of CUDA that a library calls, each with its version, or an empty one."""
    names = output_of("nm", "--dynamic", "--undefined-only", "--format=just-symbols", str(library)).split()
    pairs = (name.partition("@") for name in names)
    return [(bare, version) for bare, _, version in pairs if _CUDA.fullmatch(bare)]


def build(target: Path, symbols: list[tuple[str, str]]) -> None:
    """Compiles a library with these functions in these versions."""
    source = [f'static const char text[] = "{Path(__file__).name}";']
    script: dict[str, list[str]] = {}
    for name, version in symbols:
        if _TEXT.fullmatch(name):
            source.append(f"const char *{name}(void) {{ return text; }}")
        else:
            source.append(f"long {name}(void) {{ return {0 if _HARMLESS.fullmatch(name) else NO_DEVICE}; }}")
        if version:
            script.setdefault(version, []).append(name)
    with tempfile.TemporaryDirectory() as folder:
        file, map_file = Path(folder, "stand_in.c"), Path(folder, "versions.map")
        file.write_text("\n".join(source) + "\n")
        map_file.write_text("".join(f"{version} {{ {'; '.join(names)}; }};\n" for version, names in script.items()))
        # -fno-builtin: the compiler knows none of these names, whatever it thinks.
        command = ["cc", "-shared", "-fPIC", "-O1", "-w", "-fno-builtin", f"-Wl,-soname,{target.name}"]
        if script:
            command.append(f"-Wl,--version-script={map_file}")
        subprocess.run([*command, "-o", str(target), str(file)], check=True)


def output_of(*command: str) -> str:
    """What a program prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
