"""Checks the crates of the native front end, offline: licences, sources, duplicates, and where unsafe code is.

    python tools/check_crates.py server/native/Cargo.toml

Reads `cargo metadata` of the locked tree for Linux. Called by `make native-check`.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ALLOWED = {
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-3-Clause",
    "BSD-2-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
    "0BSD",
    "Unlicense",
}
"""Licences that may be linked into an Apache-2.0 work without further duties than naming them."""

SOURCE = "registry+https://github.com/rust-lang/crates.io-index"

TOLERATED_DUPLICATES: dict[str, str] = {}
"""Crates that may be there in two versions, and why."""

UNSAFE_FILES = {"os.rs"}
"""Files of the crate that may hold unsafe code."""


def linked(metadata: dict[str, Any]) -> set[str]:
    """The ids of the crates that are linked into the extension: no build or development dependencies."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    found: set[str] = set()
    left = [metadata["resolve"]["root"]]
    while left:
        package = left.pop()
        if package in found or any("proc-macro" in target["kind"] for target in packages[package]["targets"]):
            continue
        found.add(package)
        left += [
            dependency["pkg"]
            for dependency in nodes[package]["deps"]
            if any(kind["kind"] is None for kind in dependency["dep_kinds"])
        ]
    return found


def allows(expression: str) -> bool:
    """Whether a licence expression can be met by what is allowed."""
    tokens = re.findall(r"\(|\)|[A-Za-z0-9.+-]+", expression.replace("/", " OR "))
    text = []
    for position, token in enumerate(tokens):
        if token in {"OR", "AND"}:
            text.append(token.lower())
        elif token in {"(", ")"}:
            text.append(token)
        elif token == "WITH" or (position and tokens[position - 1] == "WITH"):
            continue  # an exception only gives more
        else:
            text.append(str(token in ALLOWED))
    return evaluate(text)


def evaluate(tokens: list[str]) -> bool:
    """Evaluates `True and (False or True)`."""
    alternatives: list[list[bool]] = [[]]
    depth = 0
    inner: list[str] = []
    for token in tokens:
        if token == "(":
            depth += 1
            if depth == 1:
                inner = []
                continue
        elif token == ")":
            depth -= 1
            if depth == 0:
                alternatives[-1].append(evaluate(inner))
                continue
        if depth:
            inner.append(token)
        elif token == "or":
            alternatives.append([])
        elif token != "and":
            alternatives[-1].append(token == "True")
    return any(all(terms) for terms in alternatives)


def problems(manifest: Path) -> list[str]:
    """All that is wrong, a sentence each."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--manifest-path", str(manifest)]
    command += ["--filter-platform", "x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    ids = linked(metadata)
    found = []
    versions = defaultdict(list)
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        if package["id"] not in ids or package["source"] is None:
            continue
        versions[package["name"]].append(package["version"])
        if not allows(package["license"] or "none"):
            found.append(f"{name}: licence {package['license']} is not among the allowed")
        if package["source"] != SOURCE:
            found.append(f"{name}: comes from {package['source']}")
    for name, both in versions.items():
        if len(both) > 1 and name not in TOLERATED_DUPLICATES:
            found.append(f"{name} is linked in several versions: {', '.join(both)}")
    found += [
        f"{path.name} holds unsafe code"
        for path in sorted(manifest.parent.glob("src/**/*.rs"))
        if path.name not in UNSAFE_FILES and re.search(r"\bunsafe\b(?! code)", path.read_text())
    ]
    print(f"{len(ids) - 1} crates are linked")
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    sys.exit("\n".join(wrong) or 0)
