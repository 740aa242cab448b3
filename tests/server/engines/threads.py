"""Calls from other threads than the loader's."""

import threading


def elsewhere(function, *arguments):
    """Calls it in another thread, as a worker does after the loader: no graph is captured there."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments)))
    thread.start()
    thread.join()
    return results[0]
