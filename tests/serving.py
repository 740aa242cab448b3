"""What tests of whole servers share: callers, requests, what comes back, models, and `forebay serve` as a process."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.v1 import (
    inference_pb2,
    inference_service_pb2_grpc,
    job_service_pb2_grpc,
    model_service_pb2_grpc,
    tensor_pb2,
)
from forebay_server.config.tree import BatchingConfig, EngineConfig, ModelConfig
from tests.waiting import eventually

NATIVE = importlib.util.find_spec("forebay_native") is not None

FRONT_ENDS = [
    pytest.param(
        "native",
        marks=[pytest.mark.native, pytest.mark.skipif(not NATIVE, reason="native front end not installed")],
    ),
    "grpc.aio",
]


class Caller:
    """Generated stubs on one channel, and what tests say often."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = [
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.max_send_message_length", 64 << 20),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if credentials is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            self.channel = grpc.secure_channel(address, credentials, options)
        self.inference = inference_service_pb2_grpc.InferenceServiceStub(self.channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self._kept: list[grpc.Future] = []  # a call that nobody holds any more is cancelled

    def serving(self, service: str = "") -> bool:
        """Whether health says that something serves."""
        try:
            response = self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                raise
            return False
        return response.status == health_pb2.HealthCheckResponse.SERVING

    def later(
        self, model: str, array: np.ndarray, *, timeout: float = 20.0, metadata=None, **fields: object
    ) -> "grpc.Future":
        """Sends one FP32 array and does not wait for the answer."""
        future = self.inference.Predict.future(request_of(model, array, **fields), timeout=timeout, metadata=metadata)
        self._kept.append(future)
        return future

    def fails(self, request: inference_pb2.PredictRequest, *, timeout: float = 20.0, metadata=None) -> grpc.RpcError:
        """The error of a call that must fail."""
        with pytest.raises(grpc.RpcError) as caught:
            self.inference.Predict(request, timeout=timeout, metadata=metadata)
        return caught.value

    def predict(
        self, model: str, array: np.ndarray, *, name: str = "x", timeout: float = 20.0, metadata=None, **fields: object
    ) -> inference_pb2.PredictResponse:
        """Sends one FP32 array."""
        request = request_of(model, array, name=name, **fields)
        return self.inference.Predict(request, timeout=timeout, metadata=metadata)


def request_of(model: str, array: np.ndarray, *, name: str = "x", **fields: object) -> inference_pb2.PredictRequest:
    """A request with one FP32 input."""
    tensor = tensor_pb2.Tensor(
        name=name, data_type=tensor_pb2.DATA_TYPE_FP32, shape=array.shape, data=array.astype("<f4").tobytes()
    )
    return inference_pb2.PredictRequest(model=model, inputs=[tensor], **fields)


def row(value: float, rows: int = 1, width: int = 4) -> np.ndarray:
    """Rows whose elements are all one number."""
    return np.full((rows, width), value, np.float32)


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


def synthetic(
    name: str = "model",
    *,
    batching: BatchingConfig | None = None,
    engine: dict[str, object] | None = None,
    model: dict[str, object] | None = None,
    **options: object,
) -> ModelConfig:
    """A synthetic model of 4 FP32 in and 4 FP32 out."""
    return ModelConfig(
        name=name,
        path="synthetic:",
        batching=batching or BatchingConfig(),
        engine=EngineConfig(name="synthetic", options=options, **(engine or {})),
        **(model or {}),
    )


class Process:
    """`forebay serve` in a process of its own."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        base = {key: value for key, value in os.environ.items() if not key.startswith("FOREBAY_")}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "forebay_server", "serve", "--log-format", "json", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**base, "XDG_CACHE_HOME": str(folder / "cache"), **environment},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.popen.stderr:
            self.lines.append(line.rstrip())

    @property
    def stderr(self) -> str:
        """All that it has written to stderr so far."""
        return "\n".join(self.lines)

    def events(self, name: str) -> list[dict[str, object]]:
        """Its log lines of one kind."""
        entries = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [entry for entry in entries if entry.get("event") == name]

    def await_event(self, name: str) -> dict[str, object]:
        """Waits for a log line."""
        eventually(lambda: self.events(name) or self.popen.poll() is not None, f"log line {name}", 30)
        assert self.events(name), self.stderr
        return self.events(name)[0]

    @property
    def addresses(self) -> dict[str, str]:
        """Where it listens, by the names of the exposures."""
        line = self.await_event("listening")
        return {name: line[name] for name in ("public", "operator", "probe") if name in line}

    def ready(self, models: int = 1) -> "Process":
        """Waits until so many models are ready."""
        eventually(lambda: len(self.events("model_ready")) >= models or self.popen.poll() is not None, "models", 30)
        assert self.popen.poll() is None, self.stderr
        return self

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.popen.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        """Waits for its end; its exit code."""
        code = self.popen.wait(timeout)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.wait()
        self.popen.stdout.close()
        self.popen.stderr.close()
