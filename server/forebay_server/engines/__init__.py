"""What runs batches: one module per engine behind the port in `engines.base`."""
