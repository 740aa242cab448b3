"""Takes messages from the store's outbox, sends them, and tells the store what became of each.

What is not told is sent again: a message that was taken comes back after a while, so a crash at any point loses none
and may double one. Few messages are under way at a time, and only as many are taken as can be sent at once, so nothing
waits here. After each, a thread rests for a multiple of the processor time that it took: all of them together never
take more than `SHARE` of a core from inference.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Final, Protocol, cast

import structlog

from forebay_server.config.tree import WebhooksConfig
from forebay_server.errors import ForebayError
from forebay_server.jobs.events import WEBHOOK, new_events
from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.store import Delivered, Deliveries, Delivery, Operation, Outcome, Undelivered
from forebay_server.jobs.webhooks import message, retries
from forebay_server.jobs.webhooks.holds import Holds
from forebay_server.jobs.webhooks.signing import Secret, read_secrets
from forebay_server.jobs.webhooks.targets import Target, Targets
from forebay_server.jobs.webhooks.transport import Answer, Transport, Undeliverable

PARALLEL: Final = 8
"""Messages under way at a time, each in a thread of its own."""
SHARE: Final = 0.2
"""Of one core, for all of them together."""
POLL: Final = 1.0
"""Seconds between looks into the outbox; `wake` makes it look earlier."""

_GATHER = 0.05  # seconds after `wake`, so that many jobs that finish are one look
_RECORDING = 30.0  # seconds that the store may take to note an outcome, before the message comes back by itself
_PAUSES = (0.1, 0.5, 2.0, 5.0)  # seconds between tries to note an outcome

_log = structlog.get_logger(__name__)


class Watcher(Protocol):
    """Who looks at the tries; `telemetry.tracing`. Called by any thread, and must not raise."""

    def resume(self, traceparent: str) -> Any:
        """A try begins, for a job with this trace context; gives what the other two take."""

    def header(self, mark: Any) -> str:
        """The `traceparent` that the receiver is to get; empty: none."""

    def webhook(self, mark: Any, began: float, job: str, tries: int, status: int, error: str) -> None:
        """It has ended.

        Args:
            mark: What `resume` gave.
            began: When, monotonic seconds.
            job: The job's id.
            tries: Which try it was.
            status: Of HTTP; 0: there was no answer.
            error: The kind of what went wrong; empty: it arrived.
        """


def make_sender(
    config: WebhooksConfig, ask: Callable[[Operation], Outcome], watcher: Watcher | None = None
) -> "Sender":
    """A sender as the settings say. Without targets it sends nothing, and gives up what earlier settings have left.

    Args:
        config: The settings.
        ask: Asks the store and waits; from any thread.
        watcher: Who looks at the tries.

    Raises:
        ConfigError: An entry of the list is wrong, a secret can't be read, or the HTTP client is missing.
    """
    targets = Targets(config.allow, allow_private=config.allow_private)
    secrets = read_secrets(config.secrets)
    transport = Transport(timeout=config.timeout_s, allow_private=config.allow_private) if targets else None
    return Sender(
        targets, secrets, transport, ask, timeout=config.timeout_s, max_tries=config.max_tries, watcher=watcher
    )


class Sender:
    """Sends the messages of the outbox, in threads of its own. Its methods may be called from any thread.

    Args:
        targets: Where messages may go.
        secrets: What signs them, by name.
        transport: Sends one; None only if `targets` has none. Closed with the sender.
        ask: Asks the store and waits; from any thread. Raises `ForebayError`.
        timeout: Seconds that the transport may take.
        max_tries: Tries after which a message is given up.
        watcher: Who looks at the tries.

    Attributes:
        events: What became of each try, for telemetry (`jobs.events`).
    """

    def __init__(
        self,
        targets: Targets,
        secrets: dict[str, Secret],
        transport: Transport | None,
        ask: Callable[[Operation], Outcome],
        *,
        timeout: float,
        max_tries: int,
        watcher: Watcher | None = None,
    ) -> None:
        self._watcher = watcher
        self._targets = targets
        self._secrets = secrets
        self._transport = transport
        self._ask = ask
        self._lease = timeout + _RECORDING
        self._max_tries = max_tries
        self._holds = Holds()
        self._holds_lock = threading.Lock()
        self._slots = threading.Semaphore(PARALLEL)
        self._taken: SimpleQueue[Delivery | None] = SimpleQueue()
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.events = new_events()

    def start(self) -> None:
        """Begins to send. The store must be open."""
        self._threads = [
            threading.Thread(target=self._work, name=f"forebay-webhook-{number}", daemon=True)
            for number in range(PARALLEL)
        ]
        self._threads.append(threading.Thread(target=self._take, name="forebay-webhooks", daemon=True))
        for thread in self._threads:
            thread.start()

    def close(self, timeout: float) -> None:
        """Takes no more, gives what is under way so many seconds, and then cuts it: it will be sent again."""
        until = time.monotonic() + timeout
        self._stopping.set()
        self._woken.set()
        for _ in range(PARALLEL):
            self._taken.put(None)
        self._join(until)
        if self._transport is not None:
            self._transport.close()
        self._join(time.monotonic() + 0.5)  # to note what was cut; a thread that hangs in the system is left behind

    def wake(self) -> None:
        """A job has finished: there may be a message. Never blocks."""
        if not self._woken.is_set():
            self._woken.set()

    def allowed(self, url: str, secret: str) -> tuple[str, str] | None:
        """Why a job may not have this webhook: the field, and a sentence without its subject. None: it may."""
        try:
            self._targets.target(url)
        except ValueError as exc:
            return "webhook.url", str(exc)
        if secret not in self._secrets:
            return "webhook.secret", "is not the name of a secret that the operator has configured"
        return None

    def _join(self, until: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    # --- Taking: one thread ---------------------------------------------------------------------------------------

    def _take(self) -> None:
        while not self._stopping.is_set():
            free = self._free()
            taken = () if self._stopping.is_set() else self._deliveries(free)
            for delivery in taken:
                if self._stopping.is_set():  # nobody would send it
                    self._record(Undelivered(delivery.job.id, 0.0))
                else:
                    self._taken.put(delivery)
            for _ in range(free - len(taken)):
                self._slots.release()
            if not taken and not self._stopping.is_set():
                self._woken.wait(POLL)
                self._woken.clear()
                self._stopping.wait(_GATHER)

    def _free(self) -> int:
        """Waits for a free thread; all that are free."""
        self._slots.acquire()
        free = 1
        while free < PARALLEL and self._slots.acquire(blocking=False):
            free += 1
        return free

    def _deliveries(self, limit: int) -> Sequence[Delivery]:
        try:
            taken = cast(Sequence[Delivery], self._ask(Deliveries(limit, self._lease)))
        except ForebayError:
            return ()  # the store does not answer; it says so itself
        except Exception:  # noqa: BLE001  # nobody else would hear of it, and no message would ever be sent again
            _log.exception("webhook_outbox_failed")
            return ()
        if taken:
            reach("webhook.taken")
        return taken

    # --- Sending: each in a thread of its own ---------------------------------------------------------------------

    def _work(self) -> None:
        while (delivery := self._taken.get()) is not None:
            began = time.thread_time()
            try:
                self._record(self._outcome(delivery))
            except Exception:  # noqa: BLE001  # see above; the message comes back by itself
                _log.exception("webhook_failed", job=delivery.job.id)
            rest = (time.thread_time() - began) * (PARALLEL / SHARE - 1)
            self._stopping.wait(rest)
            self._slots.release()

    def _outcome(self, delivery: Delivery) -> Delivered | Undelivered:
        began = time.monotonic()
        job, tries = delivery.job, delivery.tries + 1
        origin, asked, gone = "", 0.0, False
        try:
            target = self._target(delivery)
            origin = target.origin
            answer = self._send(target, delivery)
        except Undeliverable as exc:
            reason = str(exc)
            if self._stopping.is_set():
                return Undelivered(job.id, 0.0)
        except _Held as held:
            reason, asked = "the target does not answer", held.seconds
        else:
            if retries.delivered(answer.status):
                reach("webhook.sent")
                self.events.append((WEBHOOK, "delivered", time.monotonic() - began))
                return Delivered(job.id)
            reason = f"HTTP status {answer.status}"
            asked = retries.retry_after(answer.retry_after, time.time())
            gone = retries.final(answer.status)
        if gone or tries >= self._max_tries:
            self.events.append((WEBHOOK, "given_up", time.monotonic() - began))
            _log.warning("webhook_given_up", job=job.id, target=origin, tries=tries, reason=reason)
            return Delivered(job.id)
        pause = retries.pause(tries, random.random(), asked=asked)  # noqa: S311  # spreads load, guards nothing
        self.events.append((WEBHOOK, "undelivered", time.monotonic() - began))
        _log.debug("webhook_undelivered", job=job.id, target=origin, tries=tries, reason=reason, pause=pause)
        return Undelivered(job.id, pause)

    def _target(self, delivery: Delivery) -> Target:
        """Where a message goes. The settings may have changed since its job was submitted."""
        try:
            return self._targets.target(delivery.webhook.url)
        except ValueError as exc:
            raise Undeliverable(f"the URL {exc}") from exc

    def _send(self, target: Target, delivery: Delivery) -> Answer:
        secret = self._secrets.get(delivery.webhook.secret)
        if secret is None or self._transport is None:
            raise Undeliverable(f"there is no secret {delivery.webhook.secret!r}")
        with self._holds_lock:
            held = self._holds.remaining(target.origin, time.monotonic())
        if held:
            raise _Held(held)
        mark = None if self._watcher is None else self._watcher.resume(delivery.job.traceparent)
        if self._watcher is None or mark is None:
            return self._post(self._transport, target, secret, delivery, "")
        began, status, error = time.monotonic(), 0, "undeliverable"
        try:
            answer = self._post(self._transport, target, secret, delivery, self._watcher.header(mark))
            status = answer.status
            error = "" if retries.delivered(status) else str(status)
        finally:
            self._watcher.webhook(mark, began, delivery.job.id, delivery.tries + 1, status, error)
        return answer

    def _post(
        self, transport: Transport, target: Target, secret: Secret, delivery: Delivery, traceparent: str
    ) -> Answer:
        body = message.body(delivery.job)
        headers = secret.headers(message.message_id(delivery.job), int(time.time()), body)
        headers |= {"content-type": "application/json", "user-agent": "forebay"}
        if traceparent:
            headers["traceparent"] = traceparent
        try:
            answer = transport.post(target, headers, body)
        except Undeliverable as exc:
            with self._holds_lock:
                began = self._holds.failed(target.origin, time.monotonic())
            if began and not self._stopping.is_set():
                _log.warning("webhook_target_held", target=target.origin, reason=str(exc))
            raise
        with self._holds_lock:
            self._holds.answered(target.origin)
        return answer

    def _record(self, outcome: Delivered | Undelivered) -> None:
        """Tells the store. If it does not answer for long, the message comes back by itself."""
        for pause in (*_PAUSES, None):
            try:
                self._ask(outcome)
            except ForebayError:
                if pause is None or self._stopping.wait(pause):
                    return
            else:
                if isinstance(outcome, Delivered):
                    reach("webhook.recorded")
                return


class _Held(Exception):
    """The target is left alone for a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
