"""The TensorRT engine: `engine.TensorRtEngine` is its entry point; `making.make` builds plans for the command line too.

A *plan* is what TensorRT builds from a network for one GPU; deserialized it is TensorRT's engine. A plan is executable:
only files that the operator has put there are loaded, and only after their sidecar has been checked (`sidecar`).

Nothing here imports TensorRT but `library`, and that only when a device was found: without a driver TensorRT's objects
don't fail, they crash the process.
"""
