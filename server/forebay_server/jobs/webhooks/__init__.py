"""Tells others that a job has finished: signed messages from the store's outbox to targets that the operator allows.

What decides is pure: `targets` (which URLs), `addresses` (which IP addresses), `message` and `signing` (what is sent),
`retries` (what becomes of it), `holds` (whom to leave alone for a while). `transport` sends one message and guards the
connection; `sender` has the threads.
"""
