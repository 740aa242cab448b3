"""What the scheduler is told about a model and about the server. Seconds, bytes and rows; no decisions here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ModelKey = tuple[str, int]
"""Name and version."""

Bucket = tuple[tuple[int, ...], ...]
"""The shape of one row of each input, such as `((64,),)`; whole shapes if the model is not batched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPolicy:
    """How one version of a model is batched."""

    max_batch_size: int
    """The most rows in a batch; 1 if the model is not batched."""
    best_batch_size: int = 0
    """The size to aim at; 0: by the cost model."""
    max_delay: float = 0.0
    """Seconds that an idle instance may wait for a fuller batch; 0: it never waits."""
    max_queued_rows: int = 100_000
    """Rows that may wait."""
    batch_sizes: Sequence[int] = ()
    """Sizes that batches are padded up to, ascending; empty: batches are not padded."""
    max_lanes: int = 256
    """Lanes (bucket and parameters) that may have requests waiting at a time."""
    instances: int = 1
    """Batches that can run at the same time."""
    job_instances: int = 0
    """Instances beside them that run batches of jobs alone, in threads that give way to all others; 0: jobs take the
    instances that no online request wants."""
    depth: int = 1
    """Batches that each instance may have: the first runs, the others are on their way to the device."""
    max_execution: float = 0.0
    """Seconds after which a batch counts as stuck; 0: 30 s at first, then by what was measured."""
    device: str = ""
    """What the engine runs on. A tenant that is busy on one model of a device is charged for it on the others."""

    def padded(self, rows: int) -> int:
        """The size that a batch of so many rows is padded to."""
        for size in self.batch_sizes:
            if size >= rows:
                return size
        return rows

    def limit(self, rows: int) -> int:
        """The largest number of rows, at most `rows` where possible, that pads to no more than `rows`."""
        rows = max(1, min(rows, self.max_batch_size))
        if not self.batch_sizes:
            return rows
        return max((size for size in self.batch_sizes if size <= rows), default=min(rows, self.batch_sizes[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPolicy:
    """One tenant's part."""

    weight: float = 1.0
    """Its share compared with other tenants."""
    max_queued_rows: int = 0
    """Rows it may have waiting, all models together; 0: no limit of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPolicy:
    """Limits and shares over all models."""

    max_held_bytes: int = 1 << 30
    """Bytes of requests that wait or run, and of what the front end holds."""
    tenants: Mapping[str, TenantPolicy] = field(default_factory=dict)
    """Tenants with a part of their own; all others have the default one each."""
