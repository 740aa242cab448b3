"""A model in Python: counts how often each keyword occurs in a text. `docs/serving.md` serves it.

    forebay serve examples/keywords.py:Keywords --set models.0.engine.options.words=late,broken,refund

One object belongs to one engine instance, so only one thread uses it at a time.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from forebay_server.engines.base import RejectInput
from forebay_server.engines.python import model

LONGEST = 10_000  # bytes of one text


@model(
    inputs={"text": ("BYTES", (-1,))},
    outputs={"counts": ("INT64", (-1, -1)), "first": ("BYTES", (-1,))},
)
class Keywords:
    """Takes a batch of texts.

    Args:
        words: The engine option of this name: keywords with commas between them.
    """

    def __init__(self, words: str = "late,broken") -> None:
        self._words = [word.encode() for word in words.split(",")]

    def infer(
        self, text: npt.NDArray[np.object_], parameters: Mapping[str, object]
    ) -> tuple[npt.NDArray[np.int64], list[bytes]]:
        """Gives a count for each text and word, and the keyword that comes first in each text."""
        too_long = [row for row, one in enumerate(text) if len(one) > LONGEST]
        if too_long:
            raise RejectInput(f"a text has more than {LONGEST} bytes", too_long)
        texts = list(text) if parameters.get("case") == "exact" else [one.lower() for one in text]
        counts = np.array([[one.count(word) for word in self._words] for one in texts], np.int64)
        first = [min((word for word in self._words if word in one), key=one.index, default=b"") for one in texts]
        return counts, first
