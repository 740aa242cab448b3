"""The server. `cli` is the way in; `app` puts everything together; docs/architecture.md draws the rooms."""
