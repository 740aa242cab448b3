"""Models on disk and in memory: settings, specifications, loading, warm-up, versions."""
