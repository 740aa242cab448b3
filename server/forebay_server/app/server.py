"""A server, put together: the one place that knows which concrete classes meet.

`Server` can live in any process and thread (tests start several); signals and exit codes are `app.lifecycle`'s.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from forebay_server.app.dispatcher import Dispatcher, endpoints_of
from forebay_server.app.wiring import exposures, model_policy, server_policy, wire_limits
from forebay_server.config.tree import Config, ModelConfig
from forebay_server.engines.base import ModelLoadError
from forebay_server.models.catalogue import Catalogue
from forebay_server.models.costs import cache_directory
from forebay_server.models.loader import Loaded, load
from forebay_server.models.served import ModelState, Served
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.runner import Runner
from forebay_server.services.health import HealthService
from forebay_server.services.inference import InferenceService
from forebay_server.services.models import ModelService
from forebay_server.services.reflection import ReflectionService
from forebay_server.services.service import Outbox
from forebay_server.services.status import refusals
from forebay_server.telemetry.statistics import Statistics
from forebay_server.wire.choose import open_wire
from forebay_server.wire.port import WireConfig

CLOSE_GRACE = 5.0  # seconds for answers that are on their way out when everything else has ended
DRAIN_POLL = 0.01  # seconds between looks at whether the last request has been answered

_log = structlog.get_logger(__name__)
