"""A Python without torch."""

import builtins
import sys


def hide_torch(monkeypatch):
    """Importing torch fails, whether it is installed or not."""
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
