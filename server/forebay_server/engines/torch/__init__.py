"""The torch engine: packages that `forebay compile` has made of exported programs, and modules that a factory makes.

`TorchEngine` is what the entry point refers to. `archive` and `target` judge a package before any of its code is
loaded, and need no torch; `profile` is what a package says of its tensors and their lengths; `compiling` makes
packages. Absolute imports keep this package and the library `torch` apart.
"""

from forebay_server.engines.torch.engine import TorchEngine

__all__ = ["TorchEngine"]
