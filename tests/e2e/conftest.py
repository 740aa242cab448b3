"""A whole server in this process, on a real socket, over each of the two front ends; and the callers' side of it."""

import importlib.util
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from forebay.v1 import inference_pb2, inference_service_pb2_grpc, model_service_pb2_grpc, tensor_pb2
from forebay_server.app.server import Server
from forebay_server.config.tree import (
    BatchingConfig,
    Config,
    EngineConfig,
    ExposureConfig,
    LimitsConfig,
    ModelConfig,
    ServerConfig,
)

NATIVE = importlib.util.find_spec("forebay_native") is not None

FRONT_ENDS = [
    pytest.param(
        "native",
        marks=[pytest.mark.native, pytest.mark.skipif(not NATIVE, reason="native front end not installed")],
    ),
    "grpc.aio",
]


@pytest.fixture(params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    """The name of the front end under test."""
    return request.param


class Caller:
    """Generated stubs on one channel, and what tests say often."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
        self.channel = grpc.insecure_channel(address, options)
        self.inference = inference_service_pb2_grpc.InferenceServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(
        self, model: str, array: np.ndarray, *, name: str = "x", timeout: float = 20.0, **fields: object
    ) -> inference_pb2.PredictResponse:
        """Sends one FP32 array."""
        return self.inference.Predict(request_of(model, array, name=name, **fields), timeout=timeout)


def request_of(model: str, array: np.ndarray, *, name: str = "x", **fields: object) -> inference_pb2.PredictRequest:
    """A request with one FP32 input."""
    tensor = tensor_pb2.Tensor(
        name=name, data_type=tensor_pb2.DATA_TYPE_FP32, shape=array.shape, data=array.astype("<f4").tobytes()
    )
    return inference_pb2.PredictRequest(model=model, inputs=[tensor], **fields)


def array_of(tensor: tensor_pb2.Tensor) -> np.ndarray:
    """An FP32 output."""
    return np.frombuffer(tensor.data, "<f4").reshape(tuple(tensor.shape))


def details_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, list[object]]:
    """Code, ErrorInfo reason and all details of a failed call."""
    return error.code(), *unpack(details_bytes(error))


def details_bytes(error: grpc.RpcError) -> status_pb2.Status:
    """The google.rpc.Status of a failed call."""
    trailers = dict(error.trailing_metadata() or ())
    return status_pb2.Status.FromString(trailers["grpc-status-details-bin"])


def unpack(status: status_pb2.Status) -> tuple[str, list[object]]:
    """The reason and the unpacked details of a status."""
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest)
    details: list[object] = []
    for any_detail in status.details:
        for kind in kinds:
            if any_detail.Is(kind.DESCRIPTOR):
                detail = kind()
                any_detail.Unpack(detail)
                details.append(detail)
    infos = [detail for detail in details if isinstance(detail, error_details_pb2.ErrorInfo)]
    assert len(infos) == 1, "each error carries exactly one ErrorInfo"
    assert infos[0].domain == "forebay"
    return infos[0].reason, details


@pytest.fixture
def serve(front_end: str, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on any free port, waits until they are ready, and closes them at the end."""
    servers: list[Server] = []
    threads = threading.active_count()

    def start(
        *models: ModelConfig,
        limits: LimitsConfig | None = None,
        ready: bool = True,
        server: dict[str, object] | None = None,
        **sections: object,
    ) -> Server:
        config = Config(
            server=ServerConfig(
                **{
                    "wire": front_end,
                    "public": ExposureConfig(address="127.0.0.1:0"),
                    "cache_dir": str(tmp_path / "cache"),
                    "watchdog_s": 60.0,
                    **(server or {}),
                }
            ),
            limits=limits or LimitsConfig(),
            models=list(models),
            **sections,
        )
        started = Server(config)
        servers.append(started)
        started.start()
        if ready:
            assert started.wait_ready(30), started.start_failure
        return started

    yield start
    for server in servers:
        server.close()
    assert threading.active_count() <= threads + 2, "threads are left behind"


@pytest.fixture
def call() -> Iterator[Callable[[Server], Caller]]:
    """Callers of servers, closed at the end."""
    callers: list[Caller] = []

    def connect(server: Server) -> Caller:
        caller = Caller(server.addresses["public"])
        callers.append(caller)
        return caller

    yield connect
    for caller in callers:
        caller.channel.close()


def synthetic(name: str = "model", *, batching: BatchingConfig | None = None, **options: object) -> ModelConfig:
    """A synthetic model of 4 FP32 in and 4 FP32 out."""
    return ModelConfig(
        name=name,
        path="synthetic:",
        batching=batching or BatchingConfig(),
        engine=EngineConfig(name="synthetic", options=options),
    )
