"""Where the instances of a model run: from the devices that its settings name to one engine for each of them.

`place` is pure; how much memory is free on which GPU it is told. An engine knows one device only, the one that its
options name: several devices are several engines of one model, whose instances the scheduler feeds as one. Called by
the loader.
"""

import re
from collections.abc import Callable, Sequence

from forebay_server.engines.base import ModelLoadError
from forebay_server.errors import ConfigError

GPU = "cuda"
EVERY = "cuda:*"

_DEVICE = re.compile(r"cpu|cuda:\*|(?!cpu)[a-z]+(?::(?:0|[1-9][0-9]*))?")


def place(
    wanted: Sequence[str], kinds: Sequence[str], count: Callable[[], int], free: Callable[[], Sequence[int]]
) -> tuple[str, ...]:
    """The devices that a model runs on, each once.

    Args:
        wanted: As in the setting `engine.devices`.
        kinds: What the engine runs on (`cpu`, `cuda`), what it is made for first.
        count: How many GPUs there are. It is only called if some are wanted.
        free: Free bytes of each, by index. It is only called if there is a choice.

    Raises:
        ConfigError: Something else than a device is named, one is named twice, several kinds are, or the engine does
            not run on it.
        ModelLoadError: There are not so many GPUs here, or none at all.
    """
    asked = list(wanted) or [kinds[0]]
    for name in asked:
        if not _DEVICE.fullmatch(name):
            raise ConfigError(f"engine.devices: {name!r} is no device; write cpu, cuda, cuda:*, or cuda:0, cuda:1, ...")
        if name.partition(":")[0] not in kinds:
            raise ConfigError(f"engine.devices: the engine does not run on {name!r}, only on {', '.join(kinds)}")
    if len({name.partition(":")[0] for name in asked}) > 1:
        raise ConfigError("engine.devices: a model runs on devices of one kind, because its batches have one cost")
    if EVERY in asked and len(asked) > 1:
        raise ConfigError(f"engine.devices: {EVERY} names every GPU already")
    for name in asked:
        if name != GPU and asked.count(name) > 1:
            raise ConfigError(
                f"engine.devices: {name!r} is named twice; engine.instances says how many instances it has"
            )
    if not any(name.partition(":")[0] == GPU for name in asked):
        return tuple(asked)
    return _on_gpus(asked, count(), free)


def _on_gpus(asked: Sequence[str], count: int, free: Callable[[], Sequence[int]]) -> tuple[str, ...]:
    here = f"there are {count} GPUs here" if count != 1 else "there is 1 GPU here"
    if EVERY in asked:
        return tuple(f"{GPU}:{index}" for index in range(count))
    named = {int(name.partition(":")[2]) for name in asked if name.startswith(f"{GPU}:")}
    if missing := sorted(index for index in named if index >= count):
        raise ModelLoadError(f"engine.devices: no {GPU}:{missing[0]}; {here}")
    rest = sorted(set(range(count)) - named)
    wanted = asked.count(GPU)
    if wanted > len(rest):
        raise ModelLoadError(f"engine.devices: {wanted + len(named)} GPUs are wanted; {here}")
    if 0 < wanted < len(rest):
        memory = free()
        rest.sort(key=lambda index: -memory[index])
    emptiest = iter(rest)
    return tuple(f"{GPU}:{next(emptiest)}" if name == GPU else name for name in asked)
