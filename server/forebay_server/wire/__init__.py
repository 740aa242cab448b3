"""gRPC bytes in and out: the port, its two adapters, certificates. Knows methods and bytes, nothing of models."""
