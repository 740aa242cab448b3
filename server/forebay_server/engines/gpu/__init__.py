"""The data path of engines on a GPU: see `device` for its ports, `pipeline` for how batches go through."""
