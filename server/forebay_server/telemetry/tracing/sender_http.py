"""Sends messages of spans over HTTP with the SDK's exporter. Imports OpenTelemetry; see `export`."""

import gzip
import zlib
from collections.abc import Callable
from typing import Any, Final

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult
from requests.structures import CaseInsensitiveDict

_PACK: Final[dict[str, Callable[[bytes], bytes]]] = {"gzip": gzip.compress, "deflate": zlib.compress}
"""By the header Content-Encoding, which the SDK sets as the variables say."""


class HttpSender:
    """Sends messages that are ready; all else (variables, certificates, tries, times) is the SDK's.

    The SDK's exporter is asked to send no spans, through a session of ours, which sends the message in their place.
    `tests/tracing/test_senders.py` fails if a release of the SDK does it otherwise.

    Args:
        endpoint: Where to; None: as the variables say.
    """

    def __init__(self, endpoint: str | None) -> None:
        self._session = _Session()
        self._exporter = OTLPSpanExporter(endpoint, session=self._session)

    def send(self, message: bytes) -> bool:
        """Sends a message; returns when the collector has it, or when it was in vain."""
        self._session.message, self._session.used = message, False
        return self._exporter.export(()) is SpanExportResult.SUCCESS and self._session.used

    def shutdown(self) -> None:
        """Ends what is under way."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK's


class _Session(requests.Session):
    """Sends a message of its own, whatever it is given."""

    message = b""
    used = False

    def request(self, method: str, url: str, *args: Any, **options: Any) -> requests.Response:  # type: ignore[override]  # passed on
        headers = CaseInsensitiveDict({**self.headers, **(options.get("headers") or {})})
        pack = _PACK.get(headers.get("Content-Encoding", ""))
        options["data"] = self.message if pack is None else pack(self.message)
        self.used = True
        return super().request(method, url, *args, **options)
