"""What the SDK makes of a record: the same span as an object of its own, for its own encoder.

Written from what docs/tracing.md promises, with none of the code that is tested.
"""

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from forebay_server.telemetry.tracing import records

RESOURCE = Resource({"service.name": "forebay", "a": 1, "b": [1.5, 2.5], "c": True}, "https://example.org/schema")
SCOPE = InstrumentationScope("forebay_server", "1.2.3", "https://opentelemetry.io/schemas/1.44.0")
REASONS = {1: "full", 2: "idle", 3: "delay", 4: "deadline", 5: "drain"}
FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def span_of(record, epoch, most_links):
    """The span of a record as an object of the SDK."""
    kind, trace, began, ended, *rest = record
    describe = {records.BATCH: a_batch, records.WEBHOOK: a_webhook, records.MODEL: a_step}.get(kind)
    if describe is None:
        name, role, attributes, links, failed = a_request(kind, trace, began, ended, *rest)
    else:
        name, role, attributes, links, error = describe(*rest)
        failed = bool(error)
        if error:
            attributes["error.type"] = error
    if trace.by:
        attributes["forebay.sampled_by"] = trace.by
    parent = SpanContext(trace.trace_id, trace.parent_id, trace.remote, SAMPLED) if trace.parent_id else None
    return ReadableSpan(
        name,
        context=context(trace),
        parent=parent,
        resource=RESOURCE,
        attributes=attributes,
        links=bounded(links, most_links),
        kind=role,
        status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
        start_time=epoch + int(began * 1e9),
        end_time=epoch + int(ended * 1e9),
        instrumentation_scope=SCOPE,
    )


def a_batch(key, instance, rows, padded, requests, reason, predicted, stamps, error, links):
    """Name, kind, attributes, links and error of a batch."""
    dispatched, collated, finished = stamps
    attributes = {
        "forebay.model.name": key[0],
        "forebay.model.version": key[1],
        "forebay.instance": instance,
        "forebay.batch.rows": rows,
        "forebay.batch.padded_rows": padded,
        "forebay.batch.requests": requests,
        "forebay.batch.dispatch_reason": REASONS.get(reason, "UNKNOWN"),
        "forebay.collate.duration": collated - dispatched,
        "forebay.compute.duration": finished - collated,
    }
    if predicted is not None:
        attributes["forebay.batch.predicted.duration"] = predicted
    return "forebay.batch", SpanKind.INTERNAL, attributes, links, error


def a_webhook(job, tries, status, error):
    """The same of a try to send a webhook."""
    attributes = {"forebay.job.id": job, "forebay.webhook.tries": tries, "http.request.method": "POST"}
    if status:
        attributes["http.response.status_code"] = status
    return "forebay.webhook", SpanKind.CLIENT, attributes, (), error


def a_step(name, model, version, error):
    """The same of a step in bringing a model into service."""
    return name, SpanKind.INTERNAL, {"forebay.model.name": model, "forebay.model.version": version}, (), error


def a_request(kind, trace, began, ended, what, code, reason, key, rows):
    """Name, kind, attributes and links of a call, an item or a job, and whether it failed."""
    if kind == records.CALL:
        name, role = what, SpanKind.SERVER
        attributes = {"rpc.system.name": "grpc", "rpc.method": what}
    elif kind == records.ITEM:
        name, role = "forebay.stream.item", SpanKind.SERVER if trace.remote else SpanKind.INTERNAL
        attributes = {"forebay.stream.item.id": what - (1 << 64) if what >= 1 << 63 else what}
    else:
        name, role = "forebay.job", SpanKind.CONSUMER
        keys = ("forebay.job.id", "forebay.job.attempt", "forebay.job.wait.duration")
        attributes = dict(zip(keys, what, strict=True))
    attributes["rpc.response.status_code"] = code
    if code != "OK":
        attributes["error.type"] = reason or code
    if key is not None:
        attributes |= {"forebay.model.name": key[0], "forebay.model.version": key[1], "forebay.request.rows": rows}
        attributes |= spent(trace, began, ended)
    return name, role, attributes, trace.batches, code in FAULTS


def context(trace):
    """Who a span is."""
    return SpanContext(trace.trace_id, trace.span_id, is_remote=False, trace_flags=SAMPLED)


def spent(trace, began, ended):
    """Where a request's time went."""
    found = {"forebay.decode.duration": trace.decoded - began} if trace.decoded else {}
    if trace.stamps is not None:
        dispatched, collated, finished = trace.stamps
        found |= {
            "forebay.queue.duration": dispatched - began,
            "forebay.collate.duration": collated - dispatched,
            "forebay.compute.duration": finished - collated,
            "forebay.encode.duration": ended - finished,
        }
    return found


def bounded(traces, most):
    """Links to the first so many; the others counted."""
    links = BoundedList(most)
    links.extend([Link(context(trace)) for trace in traces[:most]])
    links.dropped = max(0, len(traces) - most)
    return links
