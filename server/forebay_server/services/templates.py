"""A short cut past parsing for requests that differ from an earlier one in the bytes of their tensor only.

Most callers send one kind of message: the same model, input name, type and shape, other data and another request id.
Serialized, such messages are equal but for these bytes. A *template* is what comes before the data in a message that
was parsed and validated, with all that was found out about it. A body of the same length that begins with the same
bytes (and goes on with a request id of the same length, if that one had one) is a message with the same fields in the
same places, so only its data has to be cut out: that makes a small request in 1.3 microseconds instead of 4.3
(`bench/micro_codec.py`, with templates and with `match` made to find none).

This holds if data and id are certainly where they seem to be, and that is proven when a template is made, not assumed:
the message is parsed once more with every byte of both changed, and must then have exactly the changed ones. Data that
has to be looked at (BOOL, BYTES, models that refuse NaN) has no templates.

Runs in the dispatcher thread. Bounded in number and size; anything that does not match takes the usual way.
"""

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from forebay.v1 import inference_pb2

MAX_LENGTHS: Final = 256
"""Distinct lengths of messages that have templates."""
MAX_ALIKE: Final = 4
"""Templates of one length."""
MAX_PREFIX: Final = 512
"""Bytes before the data."""

MAX_ID: Final = 127
"""Characters of a request id; longer ones have a length of two bytes."""

_INVERTED = bytes(255 - byte for byte in range(256))
_ID_TAG = inference_pb2.PredictRequest(request_id="x").SerializeToString()[0]


class Template:
    """A kind of message, and the request that one of them became."""

    __slots__ = (
        "alike",
        "end",
        "example",
        "heading",
        "id_length",
        "length",
        "model",
        "offset",
        "prefix",
        "served",
        "version",
    )

    def __init__(
        self, prefix: bytes, size: int, message: inference_pb2.PredictRequest, served: Any, example: Any, *, plain: bool
    ) -> None:
        self.prefix = prefix
        self.offset = len(prefix)
        """Where the data begins."""
        self.end = self.offset + size
        """Where it ends, and the request id begins if there is one: a tag, its length, and its characters."""
        self.id_length = len(message.request_id)
        self.length = self.end + (2 + self.id_length if self.id_length else 0)
        """Of the whole message."""
        self.model = message.model
        self.version = message.version
        self.served = served
        """What the name and the version meant. They may come to mean something else: the user of a template asks."""
        self.example = example
        """The request, without its data."""
        self.alike = example if plain else None
        """What requests that follow it have in common if their responses differ in the data of one row only."""
        self.heading: Any = None
        """What their fingerprints have in common, once somebody has worked it out (`submissions.heading`)."""

    def leading(self, bodies: Sequence[bytes]) -> int:
        """How many of the first of some messages follow it."""
        length, prefix, id_length = self.length, self.prefix, self.id_length
        for number, body in enumerate(bodies):
            if len(body) != length or not body.startswith(prefix) or (id_length and not _id_follows(body, self)):
                return number
        return len(bodies)


class Templates:
    """All templates, by the length of the message."""

    __slots__ = ("_by_length", "_missed")

    def __init__(self) -> None:
        self._by_length: dict[int, tuple[Template, ...]] = {}
        self._missed = 0

    def match(self, body: bytes) -> Template | None:
        """The template that a message follows, if any."""
        for template in self._by_length.get(len(body), ()):
            if body.startswith(template.prefix) and (not template.id_length or _id_follows(body, template)):
                return template
        return None

    def worthwhile(self, body: bytes) -> bool:
        """Whether to `learn` from a message that followed none: if there is room, and the last such one was as long."""
        length = len(body)
        missed, self._missed = self._missed, length
        return missed == length and 0 < len(self._by_length.get(length, (None,))) < MAX_ALIKE

    def learn(
        self,
        body: bytes,
        data: bytes,
        message: inference_pb2.PredictRequest,
        served: Any,
        example: Any,
        *,
        plain: bool = False,
    ) -> bool:
        """Makes a template of a message, if its data, or its data and then its request id, are its end.

        Args:
            body: The message.
            data: The data of its one input.
            message: The same, parsed.
            served: What its model and version mean.
            example: The request that was made of it.
            plain: Whether the responses to such requests differ in the data of one row only.

        Returns:
            Whether there is a template now. If there can't be one, messages of this length are not tried again.
        """
        if len(self._by_length) >= MAX_LENGTHS and len(body) not in self._by_length:
            self._by_length.clear()
        alike = self._by_length.setdefault(len(body), ())
        id_length = len(message.request_id)
        offset = len(body) - len(data) - (2 + id_length if id_length else 0)
        if not data or not 0 < offset <= MAX_PREFIX or id_length > MAX_ID:
            return False
        prefix = body[:offset]
        if not _ends_with(prefix, data, message.request_id):
            return False
        self._by_length[len(body)] = (Template(prefix, len(data), message, served, example, plain=plain), *alike)
        return True

    def clear(self) -> None:
        """Forgets all: what models mean has changed."""
        self._by_length.clear()


def _id_follows(body: bytes, template: Template) -> bool:
    """Whether the data is followed by a request id of the template's length; in ASCII, which is certainly UTF-8."""
    end = template.end
    return body[end] == _ID_TAG and body[end + 1] == template.id_length and body[end + 2 :].isascii()


def _ends_with(prefix: bytes, data: bytes, request_id: str) -> bool:
    """Whether a message of this beginning has whatever follows it, in these lengths, as its data and its request id.

    Every byte of both is changed. If the data lay anywhere else, its first or last byte would be one that is not
    changed, so it could not equal what is expected; the same goes for the id.
    """
    other = data.translate(_INVERTED)
    id_bytes = request_id.encode()
    other_id = bytes(byte ^ 1 for byte in id_bytes)
    ending = bytes((_ID_TAG, len(id_bytes))) + other_id if id_bytes else b""
    try:
        message = inference_pb2.PredictRequest.FromString(prefix + other + ending)
    except DecodeError:
        return False
    if len(message.inputs) != 1:
        return False
    (tensor,) = message.inputs
    plain = not tensor.numbers and not tensor.strings
    return plain and tensor.data == other and id_bytes.isascii() and message.request_id.encode() == other_id
