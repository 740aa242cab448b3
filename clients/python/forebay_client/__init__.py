"""A client for Forebay: numpy in, numpy out.

    with Client("localhost:8500") as client:
        prediction = client.predict("digits", images)
        prediction["probabilities"]

`Client` is for threads, `AsyncClient` for asyncio; both do the same. What is public is in `__all__`, and nothing else.
"""

from forebay_client import _grpcio  # noqa: F401  # first: refuses a grpcio that is too old
from forebay_client._async_aggregator import AsyncAggregator
from forebay_client._async_client import AsyncClient
from forebay_client._async_stream import AsyncPredictionStream
from forebay_client._channel import Tls
from forebay_client._client import Client
from forebay_client._exceptions import (
    BadResponse,
    BytesLimit,
    Cancelled,
    DeadlineExceeded,
    DeadlineExpired,
    DeadlineUnreachable,
    Denied,
    Draining,
    EngineRestarted,
    EngineUnavailable,
    ForebayError,
    InputRejected,
    InternalError,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobKeyReused,
    JobNotFinished,
    JobNotFound,
    MessageTooLarge,
    ModelFailed,
    ModelLoading,
    ModelNotFound,
    NotFound,
    Overloaded,
    PayloadQuarantined,
    QueueFull,
    StoreFull,
    StoreUnavailable,
    TenantQuota,
    Unavailable,
    Unsupported,
    VersionNotFound,
    Violation,
)
from forebay_client._images import encode_image
from forebay_client._jobs import Job, JobState, Result, Webhook
from forebay_client._models import (
    BatchCost,
    JobStatistics,
    Latency,
    Model,
    ModelStatistics,
    ModelVersion,
    Outcome,
    ServerStatistics,
    TensorSpec,
)
from forebay_client._results import Health, Prediction, Timings
from forebay_client._retries import Retry
from forebay_client._stream_plan import StreamOptions
from forebay_client._sync_aggregator import Aggregator
from forebay_client._sync_stream import PredictionStream

__all__ = [
    "Aggregator",
    "AsyncAggregator",
    "AsyncClient",
    "AsyncPredictionStream",
    "BadResponse",
    "BatchCost",
    "BytesLimit",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "DeadlineExpired",
    "DeadlineUnreachable",
    "Denied",
    "Draining",
    "EngineRestarted",
    "EngineUnavailable",
    "ForebayError",
    "Health",
    "InputRejected",
    "InternalError",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobExpired",
    "JobKeyReused",
    "JobNotFinished",
    "JobNotFound",
    "JobState",
    "JobStatistics",
    "Latency",
    "MessageTooLarge",
    "Model",
    "ModelFailed",
    "ModelLoading",
    "ModelNotFound",
    "ModelStatistics",
    "ModelVersion",
    "NotFound",
    "Outcome",
    "Overloaded",
    "PayloadQuarantined",
    "Prediction",
    "PredictionStream",
    "QueueFull",
    "Result",
    "Retry",
    "ServerStatistics",
    "StoreFull",
    "StoreUnavailable",
    "StreamOptions",
    "TenantQuota",
    "TensorSpec",
    "Timings",
    "Tls",
    "Unavailable",
    "Unsupported",
    "VersionNotFound",
    "Violation",
    "Webhook",
    "encode_image",
]

# Tracebacks and `repr` show where a name is to be imported from, not the private module that holds it.
for _name in __all__:
    locals()[_name].__module__ = __name__
del _name
