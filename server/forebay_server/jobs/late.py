"""A store that need not be there at the start: it is opened when it answers.

A database on another machine may start after the server, or be away while the server starts again. That must not keep
the server from serving what needs no jobs; jobs heal by themselves.
"""

from collections.abc import Sequence

import structlog

from forebay_server.errors import ConfigError, StoreUnavailable
from forebay_server.jobs.store import Changed, Operation, Outcome, Store

_log = structlog.get_logger(__name__)


class LateStore:
    """A store around another one, which it opens again and again until that works.

    Args:
        store: Not opened yet.
    """

    def __init__(self, store: Store) -> None:
        self.name = store.name
        self._store = store
        self._changed: Changed | None = None
        self._open = False
        self._complaint = ""

    def open(self, changed: Changed) -> None:
        """Opens the store, or, if it does not answer now, leaves that for later.

        Raises:
            ConfigError: It answers, and can't be used.
        """
        self._changed = changed
        try:
            self._store.open(changed)
        except StoreUnavailable as error:
            _log.warning("job_store_not_there", error=error.message)
        else:
            self._open = True

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Carries out a group, by a store that is open or can be opened now. See `Store.apply`."""
        if not self._open:
            self._open_now()
        return self._store.apply(operations)

    def close(self) -> None:
        """Lets go of everything."""
        if self._open:
            self._open = False
            self._store.close()

    def _open_now(self) -> None:
        """Opens the store.

        Raises:
            StoreUnavailable: It does not answer, or (the log says so) it can't be used until somebody has mended it.
        """
        if self._changed is None:
            raise StoreUnavailable("the job store is closed")
        try:
            self._store.open(self._changed)
        except ConfigError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("job_store_not_usable", error=self._complaint)
            raise StoreUnavailable("the job store can't be used") from error
        self._open = True
        # What had changed before was told to nobody.
        self._changed(())
