"""Draws `docs/images/top.svg`: the screen of `forebay top` while a real server is under traffic.

    python -m bench.top_picture

`make pictures` runs it. The server has the demo's digits, a synthetic model that takes 50 ms and is asked for more than
it can do, and jobs; the picture is what the command would have drawn.
"""

import threading
import time
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from examples.digits import Images, Server, train
from forebay_client import Client, ForebayError
from forebay_server.cli.screen import screen
from forebay_server.cli.watched import Watch

WIDTH: Final = 118
HEIGHT: Final = 34
SECONDS: Final = 15
CALLERS: Final = 12
PICTURE: Final = Path(__file__).parents[1] / "docs" / "images" / "top.svg"


def call(address: str, images: Images, ending: threading.Event, number: int) -> None:
    """Sends digits of a few rows at a time, until the end."""
    with Client(address) as client:
        row = number
        while not ending.is_set():
            rows = 1 + row % 4
            client.predict("digits", {"pixels": images[row % 800 : row % 800 + rows]})
            row += 1


def crowd(address: str, ending: threading.Event) -> None:
    """Asks the slow model for answers within 130 ms, which it can't give to all."""
    with Client(address) as client:
        while not ending.is_set():
            try:
                client.predict("synthetic", {"x": np.zeros((8, 4), np.float32)}, deadline=0.13)
            except ForebayError:
                ending.wait(0.02)


def submit(address: str, images: Images, ending: threading.Event) -> None:
    """Hands in a job now and then."""
    with Client(address) as client:
        row = 0
        while not ending.wait(0.05):
            client.submit("digits", {"pixels": images[row % 800 : row % 800 + 1]}, request_id=f"picture-{row}")
            row += 1


def main() -> None:
    """Runs the server and its callers, watches, and draws."""
    model = Path(__file__).parents[1] / "build" / "demo" / "digits.onnx"
    images = train(model)[0]
    server = Server(model, "auto")
    ending = threading.Event()
    address = server.address
    threads = [
        *(threading.Thread(target=call, args=(address, images, ending, number)) for number in range(CALLERS)),
        *(threading.Thread(target=crowd, args=(address, ending)) for _ in range(4)),
        threading.Thread(target=submit, args=(address, images, ending)),
    ]
    try:
        for thread in threads:
            thread.start()
        watch = Watch("127.0.0.1:8500")
        with Client(address) as client:
            for _ in range(SECONDS):
                watch.answered(client.server_statistics(), now=time.monotonic())
                time.sleep(1.0)  # As `forebay top` does: a picture a second.
    finally:
        ending.set()
        for thread in threads:
            thread.join()
        server.stop()
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=WIDTH, height=HEIGHT, file=nowhere, force_terminal=True, highlight=False)
        console.print(screen(watch.view(now=time.monotonic()), width=WIDTH, height=HEIGHT))
        PICTURE.parent.mkdir(exist_ok=True)
        console.save_svg(str(PICTURE), title="forebay top")
    print(PICTURE)


if __name__ == "__main__":
    main()
