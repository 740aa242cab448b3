"""Nothing secret gets into spans: not from metadata, payloads, parameters, the configuration or exceptions."""

import pytest

from forebay.v1 import inference_pb2, tensor_pb2
from tests.serving import request_of, row, synthetic
from tests.tracing.conftest import traceparent

CANARY = "canary-5up3r-53cr37"


@pytest.mark.parametrize("where", ["metadata", "payload", "settings", "nowhere"])
def test_a_canary_is_not_seen(receiver, serve, call, where, monkeypatch):
    """Requests that go well and that fail, with a secret in each place; as a control, the model's name is seen."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={CANARY}")
    name = CANARY if where == "nowhere" else "model"
    model = synthetic(name, poison=13.0, model={"labels": [CANARY]} if where == "settings" else {})
    server = serve(model, tracing={"endpoint": receiver.endpoint, "protocol": receiver.protocol})
    caller = call(server)
    metadata = [("traceparent", traceparent())]
    fields: dict[str, object] = {}
    if where == "metadata":
        metadata += [
            ("authorization", f"Bearer {CANARY}"),
            ("x-forebay-tenant", CANARY),
            ("tracestate", f"vendor={CANARY}"),
            ("baggage", f"key={CANARY}"),
        ]
    if where == "payload":
        fields = {"request_id": CANARY, "parameters": {CANARY: inference_pb2.Parameter(string_value=CANARY)}}
    bad = tensor_pb2.Tensor(name=CANARY, data_type=tensor_pb2.DATA_TYPE_BYTES, strings=[CANARY])
    caller.predict(name, row(1.0), metadata=metadata, **fields)
    caller.fails(request_of(name, row(13.0), **fields), metadata=metadata)
    caller.fails(inference_pb2.PredictRequest(model="model", version=CANARY, inputs=[bad]), metadata=metadata)
    caller.fails(inference_pb2.PredictRequest(model=f"{CANARY}-2", inputs=[bad]), metadata=metadata)
    receiver.received.await_spans("forebay.v1.InferenceService/Predict", 4)
    server.close()

    assert (CANARY.encode() in receiver.received.raw) == (where == "nowhere")
