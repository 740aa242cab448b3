"""Durable jobs: handed over now, run in the gaps, fetched later."""
