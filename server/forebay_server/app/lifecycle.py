"""The process: signals, readiness, drain, and the exit code. `serve` is what the command calls."""

import gc
import os
import signal
import sys
import threading
from types import FrameType

import structlog

from forebay_server.app.jobs import StoreNotOpened
from forebay_server.app.log import configure_logging
from forebay_server.app.log_writer import LineWriter
from forebay_server.app.server import Server
from forebay_server.config.tree import Config
from forebay_server.errors import ConfigError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_FAULT = 70
EXIT_DEVICE = 72

SIGNAL_POLL = 0.25  # seconds; of two signals at once the kernel may give one to a thread that does not wake this one
GARBAGE = (20_000, 50, 100)
"""Thresholds of the collector of cycles. Requests and jobs make none, but with thousands in flight it walks them
again and again: with the defaults a job costs the dispatcher 22 us instead of 18 while a backlog is worked off."""

_log = structlog.get_logger(__name__)


def serve(config: Config) -> int:
    """Serves until a signal ends it.

    SIGTERM and SIGINT drain: health turns NOT_SERVING, accepted requests are answered, then the process ends. A second
    one ends it at once. SIGHUP reads the certificates again. Must be called in the main thread.

    Args:
        config: All settings.

    Returns:
        The exit code: 0 after a drain, 1 if a model could not be loaded, if the job store can't be used, or if accepted
        requests were left at the end of the grace period, 70 after a fault of the server itself. After a drain because
        the last device is lost, which only a new process can use again, it does not return: the process ends with 72,
        without the farewells of libraries, which may abort on a device that is lost.

    Raises:
        ConfigError: An address is taken, a certificate can't be read, ...
    """
    writer = configure_logging(config.log)
    gc.set_threshold(*GARBAGE)
    try:
        code = _serve(config, writer)
    finally:
        writer.close()
    if code == EXIT_DEVICE:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _serve(config: Config, writer: LineWriter) -> int:
    stop = threading.Event()
    received: list[int] = []
    lost: list[str] = []

    def on_devices_lost(device: str) -> None:
        lost.append(device)
        stop.set()

    server = Server(
        config, on_failed_start=lambda _message: stop.set(), on_fault=stop.set, on_devices_lost=on_devices_lost
    )

    def on_stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        stop.set()

    def on_renew(_number: int, _frame: FrameType | None) -> None:
        # Not in the handler: reading files there could interrupt anything.
        threading.Thread(target=_renew, args=(server,), name="forebay-renew").start()

    previous = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, on_stop),
        signal.SIGINT: signal.signal(signal.SIGINT, on_stop),
        signal.SIGHUP: signal.signal(signal.SIGHUP, on_renew),
    }
    try:
        try:
            server.start()
        except StoreNotOpened as error:
            _say(str(error), writer)
            return EXIT_FAILED
        while not stop.wait(SIGNAL_POLL):
            pass
        if lost and not received:
            _log.error("draining", device_lost=lost[0])
            left = server.drain()
            _log.info("stopped", unanswered=left)
            _say(f"the device {lost[0]} has failed; only a new process can use it again", writer)
            return EXIT_DEVICE
        if not received:
            server.close()
            failure = server.start_failure
            _say(failure or "a fault ended the server; the log says which", writer)
            return EXIT_FAILED if failure else EXIT_FAULT
        _log.info("draining", signal=signal.Signals(received[0]).name)
        left = server.drain()
        _log.info("stopped", unanswered=left)
        return EXIT_OK if left == 0 else EXIT_FAILED
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(sentence: str, writer: LineWriter) -> None:
    """The command's one sentence, after the log's lines."""
    writer.flush()
    print(f"forebay: {sentence}", file=sys.stderr)  # noqa: T201 - see above


def _renew(server: Server) -> None:
    try:
        server.renew_certificates()
    except ConfigError as error:
        _log.error("certificates_not_renewed", error=str(error))
    else:
        _log.info("certificates_renewed")
