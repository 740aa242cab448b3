"""What a Dockerfile says that a container of it runs, for tests that run the same without a container builder."""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Image(NamedTuple):
    """The configuration of an image."""

    entrypoint: list[str]
    command: list[str]
    environment: dict[str, str]
    user: str
    healthcheck: list[str]


def stages_of(dockerfile: Path) -> dict[str, list[tuple[str, str]]]:
    """Instructions and their arguments, by stage; those before the first stage are in ``."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    stages: dict[str, list[tuple[str, str]]] = {"": []}
    stage = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            stage = arguments.split(" AS ")[-1]
            stages[stage] = []
        stages[stage].append((instruction, arguments.strip()))
    return stages


def image_of(dockerfile: Path, stage: str) -> Image:
    """The configuration that a stage makes, those that it builds upon included."""
    stages = stages_of(dockerfile)
    lineage = [stage]
    while (parent := stages[lineage[0]][0][1].split(" AS ")[0]) in stages:
        lineage.insert(0, parent)
    found: dict[str, str] = {}
    environment: dict[str, str] = {}
    for name in lineage:
        for instruction, arguments in stages[name]:
            if instruction == "ENV":
                environment |= dict(pair.split("=", 1) for pair in shlex.split(arguments))
            found[instruction] = arguments
    health = found.get("HEALTHCHECK", "CMD []").partition("CMD ")[2]
    return Image(
        entrypoint=json.loads(found.get("ENTRYPOINT", "[]")),
        command=json.loads(found.get("CMD", "[]")),
        environment=environment,
        user=found.get("USER", ""),
        healthcheck=json.loads(health),
    )
