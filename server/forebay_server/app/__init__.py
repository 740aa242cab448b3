"""The composition root: builds everything, joins it, starts and drains it."""

from forebay_server.app.lifecycle import serve
from forebay_server.app.server import Server

__all__ = ["Server", "serve"]
