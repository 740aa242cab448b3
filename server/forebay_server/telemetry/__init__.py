"""Listens to what happened and adds it up. Nothing here decides."""
