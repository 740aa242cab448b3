"""Signatures in the format of Standard Webhooks (https://www.standardwebhooks.com), and the secrets that make them.

A signature is `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`. While a secret is being changed there are
two: each signs, and the header has both signatures, so that receivers can change at their time.
"""

import base64
import binascii
import hmac
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from forebay_server.errors import ConfigError

MIN_BYTES: Final = 24
"""The shortest secret that the specification allows; shorter ones can be guessed from one message."""

_PREFIX: Final = "whsec_"
_MAX_FILE: Final = 65_536  # bytes of a file of secrets


class Secret:
    """One or more keys under one name. It shows none of them.

    Args:
        keys: The keys; each signs.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"<Secret of {len(self._keys)} key(s)>"

    def headers(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """The headers of a message.

        Args:
            message_id: The same for all tries of one message; without a dot.
            timestamp: When it is sent, in seconds since 1970.
            body: The body as it is sent.
        """
        signed = f"{message_id}.{timestamp}.".encode() + body
        signatures = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in self._keys]
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        }


def read_secrets(sources: Mapping[str, str]) -> dict[str, Secret]:
    """Reads the secrets of the configuration.

    Args:
        sources: By name, `env:NAME` or `file:PATH`. The value is `whsec_` and base64, or plain text; several, separated
            by white space, are used together.

    Raises:
        ConfigError: One can't be read, or is none.
    """
    return {name: _secret(f"jobs.webhooks.secrets.{name}", source) for name, source in sources.items()}


def _secret(setting: str, source: str) -> Secret:
    kind, _, where = source.partition(":")
    if kind == "env":
        text = os.environ.get(where)
        if text is None:
            raise ConfigError(f"{setting}: the environment has no variable {where!r}")
    elif kind == "file":
        text = _content(setting, where)
    else:
        # The text itself may be a secret that somebody put in the wrong place.
        raise ConfigError(f"{setting}: expected env:NAME or file:PATH; the secret itself does not belong there")
    words = text.split()
    if not words:
        raise ConfigError(f"{setting}: {source} is empty")
    return Secret([_key(setting, source, word) for word in words])


def _content(setting: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise ConfigError(f"{setting}: the file {path} is too large for a secret")
        return content.decode()
    except OSError as exc:
        raise ConfigError(f"{setting}: the file {path} can't be read: {exc.strerror}") from exc
    except ValueError:  # not chained: it has the bytes
        raise ConfigError(f"{setting}: the file {path} is not text") from None


def _key(setting: str, source: str, word: str) -> bytes:
    key = word.encode()
    if word.startswith(_PREFIX):
        try:
            key = base64.b64decode(word.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ConfigError(f"{setting}: what follows {_PREFIX} in {source} is not base64") from None
    if len(key) < MIN_BYTES:
        raise ConfigError(f"{setting}: {source} has {len(key)} bytes, and a secret needs at least {MIN_BYTES}")
    return key
