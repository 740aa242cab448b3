"""A model that is ready to run, as the loader hands it over."""

from dataclasses import dataclass, field

import structlog

from forebay_server.config.tree import ModelConfig
from forebay_server.engines.base import Engine, Instance
from forebay_server.engines.collate import Collator
from forebay_server.models.costs import CostKey
from forebay_server.models.served import Buckets
from forebay_server.models.warm_up import Measurement
from forebay_server.tensors import ModelSpec

_log = structlog.get_logger(__name__)


@dataclass(kw_only=True)
class Loaded:
    """A model that is ready to run."""

    name: str
    version: int
    config: ModelConfig
    """With the settings of the TOML beside the file."""
    engines: list[Engine]
    """One for each device that it runs on."""
    engine_name: str
    instances: list[Instance]
    """Of all engines; those for jobs alone left out."""
    spec: ModelSpec
    """What callers see of it."""
    buckets: Buckets
    batch_sizes: tuple[int, ...]
    """Sizes that batches are padded up to; empty: any."""
    max_batch_size: int
    best_batch_size: int
    """Rows at which throughput is within 4 % of its best, or as set; 0 if not measured."""
    measurements: list[Measurement] = field(default_factory=list)
    job_instances: list[Instance] = field(default_factory=list)
    """Those that run jobs alone, beside the others (`Engine.gives_way`)."""
    inline: bool = False
    """Whether batches run in the dispatcher's thread."""
    unbatched_because: str = ""
    cost_key: CostKey | None = None
    """Under which `CostCache` keeps its costs."""
    load_seconds: float = 0.0

    @property
    def engine(self) -> Engine:
        """The first engine: all are alike but for their device."""
        return self.engines[0]

    @property
    def device(self) -> str:
        """Where it runs: `cpu`, or `cuda:0,cuda:1`."""
        return ",".join(engine.device for engine in self.engines)

    def collator(self) -> Collator:
        """Makes the collator for this model."""
        return Collator(self.spec, self.config.buckets.pad_value, self.config.buckets.outputs)

    def close(self) -> None:
        """Closes the instances and the engines. Nothing runs any more."""
        for instance in (*self.instances, *self.job_instances):
            try:
                instance.close()
            except Exception:  # noqa: BLE001  # the others are closed all the same
                _log.exception("instance not closed", model=self.name)
        self.instances.clear()
        self.job_instances.clear()
        self.close_engines()

    def close_engines(self) -> None:
        """Closes the engines alone. All instances are closed before."""
        for engine in self.engines:
            engine.close()
