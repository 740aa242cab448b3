"""Which devices a model runs on, by its settings and by free memory."""

import pytest

from forebay_server.engines.base import ModelLoadError
from forebay_server.errors import ConfigError
from forebay_server.models.placement import place

BOTH = ("cpu", "cuda")
FREE = (10, 40, 40, 20)


@pytest.mark.parametrize(
    ("wanted", "kinds", "placed"),
    [
        ([], BOTH, ("cpu",)),
        ([], ("cuda",), ("cuda:1",)),
        (["cuda"], BOTH, ("cuda:1",)),
        (["cuda", "cuda", "cuda"], BOTH, ("cuda:1", "cuda:2", "cuda:3")),
        (["cuda:2", "cuda:0"], BOTH, ("cuda:2", "cuda:0")),
        (["cuda", "cuda:1"], BOTH, ("cuda:2", "cuda:1")),
        (["cuda:*"], BOTH, ("cuda:0", "cuda:1", "cuda:2", "cuda:3")),
        (["fake:1", "fake:0"], ("cpu", "fake"), ("fake:1", "fake:0")),
    ],
)
def test_devices_are_named_or_chosen_by_free_memory(wanted, kinds, placed):
    """A name without a number is the GPU with the most free memory that is not taken yet; of equals the first."""
    assert place(wanted, kinds, lambda: 4, lambda: FREE) == placed


def test_nobody_asks_for_gpus_who_does_not_want_them():
    """A server without a driver serves on the CPU, and where there is no choice nobody compares."""

    def never():
        raise AssertionError

    assert place(["cpu"], BOTH, never, never) == ("cpu",)
    assert place(["cuda"], BOTH, lambda: 1, never) == ("cuda:0",)
    assert place(["cuda", "cuda"], BOTH, lambda: 2, never) == ("cuda:0", "cuda:1")
    assert place(["cuda:*"], BOTH, lambda: 2, never) == ("cuda:0", "cuda:1")
    assert place(["cuda:1"], BOTH, lambda: 2, never) == ("cuda:1",)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (["gpu0"], r"'gpu0' is no device; write cpu, cuda, cuda:\*, or cuda:0"),
        (["cpu:1"], "'cpu:1' is no device"),
        (["cuda:01"], "'cuda:01' is no device"),
        (["metal"], "the engine does not run on 'metal', only on cpu, cuda"),
        (["cpu", "cuda:0"], "devices of one kind"),
        (["cuda:1", "cuda:1"], "'cuda:1' is named twice"),
        (["cpu", "cpu"], "'cpu' is named twice; engine.instances says how many"),
        (["cuda:*", "cuda:1"], r"cuda:\* names every GPU already"),
    ],
)
def test_settings_that_name_no_place(wanted, sentence):
    """One sentence each, before anything is loaded."""
    with pytest.raises(ConfigError, match=sentence):
        place(wanted, BOTH, lambda: 4, lambda: FREE)


@pytest.mark.parametrize(
    ("wanted", "free", "sentence"),
    [
        (["cuda:4"], FREE, "no cuda:4; there are 4 GPUs here"),
        (["cuda:1"], (7,), "no cuda:1; there is 1 GPU here"),
        (["cuda", "cuda:0", "cuda"], (7, 8), "3 GPUs are wanted; there are 2 GPUs here"),
    ],
)
def test_more_gpus_than_there_are(wanted, free, sentence):
    """The sentence says how many there are."""
    with pytest.raises(ModelLoadError, match=sentence):
        place(wanted, BOTH, lambda: len(free), lambda: free)
