"""The process: signals, readiness, drain, and the exit code. `serve` is what the command calls."""

import contextlib
import gc
import os
import resource
import signal
import socket
import sys
from types import FrameType

import structlog

from forebay_server.app.jobs import StoreNotOpened
from forebay_server.app.log import configure_logging
from forebay_server.app.log_writer import LineWriter
from forebay_server.app.server import Server
from forebay_server.app.wiring import configured
from forebay_server.config.tree import Config

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_FAULT = 70
EXIT_DEVICE = 72

GARBAGE = (20_000, 50, 100)
"""Thresholds of the collector of cycles. Requests and jobs make none, but with thousands in flight it walks them
again and again: with the defaults a job costs the dispatcher 22 us instead of 18 while a backlog is worked off."""

OTHER_FILES = 512  # beside connections: models, libraries, the job store, logs

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
        allow_files(config)
        code = _serve(config, writer)
    finally:
        writer.close()
    if code == EXIT_DEVICE:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def allow_files(config: Config) -> None:
    """Raises the process's soft limit on open files to what the connections may need, as far as the hard one lets it.

    Shells and service managers often begin at 1,024, for the sake of programs that call `select`; nothing here does.
    """
    most = config.limits.max_connections
    wanted = most * len(configured(config.server)) + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft != resource.RLIM_INFINITY and soft < most + OTHER_FILES:
        _log.warning("few_open_files", limit=soft, max_connections=most)


class Stop:
    """That the server is to end. The main thread waits for it, in the kernel and without looking again and again.

    `threading.Event` would not do: of two signals at once the kernel may give one to a thread that does not wake the
    main one, where alone Python handles signals. Their number is written to a socket whoever gets them.
    """

    def __init__(self) -> None:
        self._set = False
        self._waits, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        self._before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)

    def set(self) -> None:
        """Says so. From any thread, and from handlers of signals."""
        self._set = True
        with contextlib.suppress(OSError):  # full: it wakes up anyway; closed: nobody waits
            self._wakes.send(b"\0")

    def wait(self) -> None:
        """Waits until somebody has said so. In the main thread."""
        while not self._set:
            self._waits.recv(4096)

    def close(self) -> None:
        """Leaves signals as they were. In the main thread."""
        signal.set_wakeup_fd(self._before)
        self._waits.close()
        self._wakes.close()


def _serve(config: Config, writer: LineWriter) -> int:
    stop = Stop()
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
        server.renew_certificates()

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
        stop.wait()
        if received:
            return EXIT_OK if _drain(server, signal=signal.Signals(received[0]).name) == 0 else EXIT_FAILED
        if lost:
            _log.error("last_device_lost", device=lost[0])
            _drain(server)
            _say(f"the device {lost[0]} has failed; only a new process can use it again", writer)
            return EXIT_DEVICE
        server.close()
        failure = server.start_failure
        _say(failure or "a fault ended the server; the log says which", writer)
        return EXIT_FAILED if failure else EXIT_FAULT
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        stop.close()


def _drain(server: Server, **because: str) -> int:
    """Drains, and tells how many requests were left."""
    _log.info("draining", **because)
    left = server.drain()
    _log.info("stopped", unanswered=left)
    return left


def _say(sentence: str, writer: LineWriter) -> None:
    """The command's one sentence, after the log's lines."""
    writer.flush()
    print(f"forebay: {sentence}", file=sys.stderr)  # noqa: T201  # see above
