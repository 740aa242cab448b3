"""The methods of the server by their names, over one channel. No two services have methods of the same name."""

from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from forebay.v1 import inference_service_pb2_grpc, job_service_pb2_grpc, model_service_pb2_grpc

Methods = dict[str, Any]
"""What gRPC calls multi-callables, of one surface or the other."""


def methods_of(channel: grpc.Channel | grpc.aio.Channel) -> Methods:
    """The methods over a channel of either surface: the stubs are the same."""
    stubs = (
        inference_service_pb2_grpc.InferenceServiceStub(channel),
        model_service_pb2_grpc.ModelServiceStub(channel),
        job_service_pb2_grpc.JobServiceStub(channel),
        health_pb2_grpc.HealthStub(channel),
    )
    return {name: method for stub in stubs for name, method in vars(stub).items()}
