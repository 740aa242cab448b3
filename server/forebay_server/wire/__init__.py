"""gRPC bytes in and out: the port, its two adapters, certificates. Knows methods and bytes, nothing of models.

`choose.open_wire` makes an adapter; `port` has all the types that others need. Nothing else here is for others.
"""
