"""Imports run downward only: the house of docs/architecture.md, kept true by walking every import statement."""

import ast
from pathlib import Path

SERVER = Path(__file__).parent.parent / "server" / "forebay_server"

LEAVES = {"wire.port", "tensors", "errors", "config", "background", "varint"}

# What each room may import beside itself and the leaves.
MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"app", "models", "engines"},
    "app": {"wire", "services", "scheduling", "engines", "models", "jobs", "telemetry"},
    "wire": set(),
    "services": {"scheduling", "engines", "models", "jobs", "telemetry"},
    "jobs": {"scheduling"},
    "scheduling": {"engines"},
    "models": {"engines"},
    "engines": set(),
    "telemetry": {"scheduling.events", "jobs.events"},
    "config": set(),
    "tensors": set(),
    "errors": set(),
    "background": set(),
    "varint": set(),
}

# Rooms that may name what is foreign to the others.
FOREIGN = {
    "grpc": {"wire", "services"},
    "grpc_health": {"services"},
    "grpc_reflection": {"services"},
    "google": {"services"},
    "forebay": {"services"},
    "forebay_native": {"wire"},
    "asyncio": {"wire"},
    "onnxruntime": {"engines"},
    "torch": {"engines"},
    "tensorrt": {"engines"},
    "cuda": {"engines"},
    "apsw": {"jobs"},
    "psycopg": {"jobs"},
    "httpcore": {"jobs"},
    "opentelemetry": {"telemetry"},
    "requests": {"telemetry"},
    "pynvml": {"telemetry"},
    "click": {"cli"},
    "rich": {"cli"},
    "forebay_client": {"cli"},
}

# The deciding core is pure: time is an argument, and nothing waits.
ACTING = {"scheduling.runner", "scheduling.worker", "scheduling.execution"}
IMPURE = {"asyncio", "threading", "time", "numpy", "grpc", "socket", "queue", "concurrent", "structlog"}

HEAVY = {
    "onnxruntime", "torch", "tensorrt", "cuda", "apsw", "psycopg", "httpcore", "opentelemetry", "pynvml", "requests",
}  # fmt: skip

# Modules that stand for a heavy package: nobody but they themselves import them at the top.
STANDING_FOR = (
    "jobs.sqlite",
    "jobs.postgres",
    "telemetry.otlp_sender",
    "telemetry.resource",
    "telemetry.tracing.message",
    "telemetry.tracing.sender_",
    "telemetry.tracing.spans",
    "telemetry.tracing.way",
)

# Packages that such modules alone import: who needs one imports the module, once, where it is needed.
STOOD_FOR = {"apsw", "opentelemetry", "psycopg", "requests"}


def room_of(module: str) -> str:
    """`scheduling.core` is in `scheduling`; `wire.port` is a leaf of its own."""
    return module if module in LEAVES else module.split(".", maxsplit=1)[0]


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module, absolute, and whether the import stands at the top of the file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            # `from forebay_server.wire import port` imports the module forebay_server.wire.port.
            names = [
                f"{module}.{alias.name}"
                if (
                    path.parents[len(path.relative_to(SERVER).parts)]
                    / (f"{module}.{alias.name}".replace(".", "/") + ".py")
                ).exists()
                else module
                for alias in node.names
            ]
        found += [(name, id(node) in top) for name in names]
    return found


def modules() -> list[tuple[str, Path]]:
    """Every module of the server, by its name inside the package."""
    found = []
    for path in sorted(SERVER.rglob("*.py")):
        parts = path.relative_to(SERVER).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found.append((name, path))
    return found


def test_imports_run_downward() -> None:
    """No room imports one above it or beside it."""
    wrong = []
    for name, path in modules():
        room = room_of(name)
        for target, _ in imports(path):
            if not target.startswith("forebay_server."):
                continue
            inside = target.removeprefix("forebay_server.")
            other = room_of(inside)
            if other.split(".")[0] in LEAVES or other in LEAVES or other.split(".")[0] == room.split(".")[0]:
                continue
            allowed = MAY_IMPORT.get(room.split(".")[0], set())
            if not any(inside == each or inside.startswith(each + ".") for each in allowed):
                wrong.append(f"{name} imports {inside}")

    assert wrong == []


def test_foreign_packages_stay_in_their_rooms() -> None:
    """gRPC and generated code are known to wire and services only, and so on."""
    wrong = []
    for name, path in modules():
        for target, _ in imports(path):
            rooms = FOREIGN.get(target.split(".")[0])
            if rooms is not None and name.split(".")[0] not in rooms:
                wrong.append(f"{name} imports {target}")

    assert wrong == []


def test_the_core_is_pure() -> None:
    """What decides has no clock, thread, socket or array."""
    wrong = []
    for name, path in modules():
        if name.startswith("scheduling.") and name not in ACTING:
            wrong += [f"{name} imports {target}" for target, _ in imports(path) if target.split(".")[0] in IMPURE]

    assert wrong == []


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    """Importing the server does not import the library of an engine or of a store."""
    wrong = []
    for name, path in modules():
        if name.startswith(STANDING_FOR):
            continue
        for target, top in imports(path):
            heavy = target.split(".")[0] in HEAVY
            stands = target.removeprefix("forebay_server.").startswith(STANDING_FOR)
            if top and (heavy or stands):
                wrong.append(f"{name} imports {target}")

    assert wrong == []


def test_some_packages_have_modules_that_stand_for_them() -> None:
    """Nobody else imports these, not even inside a function."""
    wrong = []
    for name, path in modules():
        if not name.startswith(STANDING_FOR):
            wrong += [f"{name} imports {target}" for target, _ in imports(path) if target.split(".")[0] in STOOD_FOR]

    assert wrong == []


def test_the_walk_sees_imports() -> None:
    """Positive control: the walk finds imports that are known to be there, at the top and inside a function."""
    assert ("forebay_server.wire.port", True) in imports(SERVER / "services" / "service.py")
    assert ("forebay_server.jobs.postgres", False) in imports(SERVER / "jobs" / "choose.py")
