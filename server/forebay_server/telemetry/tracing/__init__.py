"""Spans of requests, batches, jobs, webhooks and models, for OpenTelemetry.

Where things happen, a tuple is kept of those that are sampled (`tracer`, `records`); a thread makes spans of the tuples
and sends them (`export`, `spans`). Only these two know the OpenTelemetry SDK, and only if tracing is on.
"""
