"""The bench's one error."""


class BenchError(Exception):
    """The bench cannot go on; the text is a sentence for people."""
