"""The whole of Forebay in a minute: train a digit classifier, serve it, and call it from many callers at once.

    python examples/digits.py [--wire native|grpc.aio] [--listen ADDRESS] [--watch SECONDS]

Trains on scikit-learn's bundled images of handwritten digits, exports to ONNX, starts `forebay serve` in its own
process, and sends the held-out images through `Predict` and `StreamPredict`; then hands them over as jobs, kills the
server with SIGKILL, starts it again, and fetches the results. Every answer is compared with the model's own. `make
demo` runs it.
"""

import argparse
import asyncio
import datetime as dt
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from forebay_client import AsyncClient, Client, DeadlineUnreachable, ForebayError, Prediction

CALLERS = 64
JOBS = 256
REPEATS = 6  # each caller's share of the held-out images, so many times over
SHADES = " ·░▒▓█"

Images = npt.NDArray[np.float32]
console = Console(highlight=False, soft_wrap=True)


def train(path: Path) -> tuple[Images, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Trains and exports the classifier, and writes the held-out images beside it, as `images.npy`.

    Returns:
        The held-out images (n, 64), their true digits, and the model's own labels and probabilities for them.
    """
    import onnxruntime
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    seen, held_out, seen_digits, true_digits = train_test_split(pixels, digits, test_size=0.5, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence; the accuracy is shown
        classifier = MLPClassifier((64,), max_iter=200, random_state=0).fit(seen, seen_digits)
    model = to_onnx(classifier, initial_types=[("pixels", FloatTensorType([None, 64]))], options={"zipmap": False})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    np.save(path.with_name("images.npy"), held_out)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    labels, probabilities = session.run(None, {"pixels": held_out})
    return held_out, true_digits, labels, probabilities


class Server:
    """`forebay serve` in a process of its own.

    Beside the digits it serves a synthetic model that takes 50 ms, to show what a refusal looks like.
    """

    def __init__(self, model: Path, wire: str, address: str = "") -> None:
        self.address = address or free_address()
        store = model.with_name("jobs.db")
        for old in model.parent.glob(f"{store.name}*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self.arguments = [
            *("serve", os.path.relpath(model), "synthetic:base_ms=50", "--jobs", os.path.relpath(store)),
            *("--listen", self.address, "--wire", wire, "--set", "log.level=error"),
        ]
        self._start()

    def _start(self) -> None:
        began = time.perf_counter()
        self._process = subprocess.Popen([sys.executable, "-m", "forebay_server", *self.arguments])
        wait_until_serving(self.address, self._process)
        self.start_seconds = time.perf_counter() - began

    def kill_and_restart(self) -> None:
        """SIGKILL, which no process can prepare for."""
        self._process.kill()
        self._process.wait()
        self._start()

    def stop(self) -> int:
        """Stops it gracefully; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=30)


def free_address() -> str:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def served(model: Path, wire: str, address: str) -> Iterator[Server]:
    """Runs a server, and stops it gracefully."""
    server = Server(model, wire, address)
    console.print(f"[dim]$ forebay {' '.join(server.arguments)}[/]")
    console.print(f"serving after {server.start_seconds:.2f} s")
    console.print(f"[dim]watch it in another terminal:[/] forebay top --address {server.address}\n")
    try:
        yield server
    finally:
        code = server.stop()
        console.print(f"stopped by SIGTERM: every accepted call answered, exit code {code}")
        if code:
            sys.exit(f"the server ended with {code}")


def wait_until_serving(address: str, process: "subprocess.Popen[bytes]") -> None:
    """Waits for the server's own word, grpc.health.v1, that every model is ready."""
    with Client(address) as client:
        for _ in range(600):
            if process.poll() is not None:
                sys.exit(f"the server ended with {process.returncode}")
            try:
                if client.health() == "SERVING":
                    return
            except ForebayError:
                pass
            time.sleep(0.05)
    sys.exit("the server did not become ready")


async def submit_and_kill(
    server: Server, images: Images, labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]
) -> None:
    """Hands over jobs of one image each, kills the server as soon as it has acknowledged them, and fetches them all."""
    async with AsyncClient(server.address) as client:
        began = time.perf_counter()
        jobs = await asyncio.gather(
            *(client.submit("digits", {"pixels": images[row : row + 1]}, request_id=str(row)) for row in range(JOBS))
        )
        took = time.perf_counter() - began
        killed = dt.datetime.now(dt.UTC)
        await asyncio.to_thread(server.kill_and_restart)
        results = await asyncio.gather(*(client.result(job) for job in jobs))
    count = check([result.prediction for result in results], labels, probabilities)
    later = sum(result.job.end_time is not None and result.job.end_time > killed for result in results)
    console.print(f"Submit: {count} jobs, acknowledged in {took:.2f} s, each when it was on disk; then kill -9")
    console.print(f"  serving again after {server.start_seconds:.2f} s; {later} jobs had no stored result yet")
    console.print(f"  {count} results, every one equal to the model's own\n")


def check(predictions: list[Prediction], labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]) -> int:
    """Compares every answer with the model's own; returns how many there were."""
    for prediction in predictions:
        row = int(prediction.request_id)
        if prediction["label"][0] != labels[row] or not np.allclose(
            prediction["probabilities"][0], probabilities[row], atol=1e-5
        ):
            sys.exit(f"image {row}: the server's answer is not the model's own")
    return len(predictions)


async def call_concurrently(address: str, images: Images) -> tuple[list[Prediction], list[float], float]:
    """Sends every image, one a request, from many callers at once.

    Returns:
        The predictions, the seconds that each took, and the seconds that all took.
    """
    predictions: list[Prediction] = []
    seconds: list[float] = []
    work = iter([row for _ in range(REPEATS) for row in range(len(images))])

    async def caller(client: AsyncClient) -> None:
        for row in work:
            began = time.perf_counter()
            prediction = await client.predict("digits", {"pixels": images[row : row + 1]}, request_id=str(row))
            seconds.append(time.perf_counter() - began)
            predictions.append(prediction)

    async with AsyncClient(address) as client:
        await client.predict("digits", {"pixels": images[:1]})  # connects
        began = time.perf_counter()
        await asyncio.gather(*(caller(client) for _ in range(CALLERS)))
        return predictions, seconds, time.perf_counter() - began


def show_digits(images: Images, labels: npt.NDArray[np.int64], true_digits: npt.NDArray[np.int64]) -> None:
    """Draws a few held-out images with what the model says they are."""
    rows = range(4)
    for line in range(8):
        console.print(
            "  ".join(
                "".join(
                    SHADES[round(float(value) * (len(SHADES) - 1))] * 2 for value in images[row].reshape(8, 8)[line]
                )
                for row in rows
            )
        )
    marks = ["✓" if labels[row] == true_digits[row] else f"✗ is {true_digits[row]}" for row in rows]
    console.print("  ".join(f"→ {labels[row]} {mark}".ljust(16) for row, mark in zip(rows, marks, strict=True)), "\n")


def show_batches(client: Client) -> None:
    """Shows which batches the scheduler made of single requests, and why they started."""
    (statistics,) = client.statistics("digits")
    table = Table(title="Batches of digits, by rows", title_justify="left", show_edge=False, box=None)
    table.add_column("rows", justify="right")
    table.add_column("batches", justify="right")
    table.add_column()
    bins: dict[int, int] = {}
    for rows, batches in statistics.batch_sizes.items():
        upper = 1 << (rows - 1).bit_length()
        bins[upper] = bins.get(upper, 0) + batches
    most = max(bins.values())
    for upper in sorted(bins):
        lower = upper // 2 + 1
        table.add_row(
            str(upper) if lower >= upper else f"{lower}-{upper}",
            str(bins[upper]),
            "▇" * max(1, round(40 * bins[upper] / most)),
        )
    console.print(table)
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(statistics.dispatches.items()) if count)
    console.print(f"started because: {reasons}\n")


def show_refusal(client: Client) -> None:
    """Asks a model that takes 50 ms for an answer within 10 ms."""
    began = time.perf_counter()
    try:
        client.predict("synthetic", {"x": np.zeros((1, 4), np.float32)}, deadline=0.01)
    except DeadlineUnreachable as refusal:
        console.print(
            f"a deadline that can't be met is refused after {(time.perf_counter() - began) * 1e3:.1f} ms, "
            f"not after 10:\n  {refusal}\n"
        )
    else:
        sys.exit("a request that could not be answered in time was not refused")


def main() -> None:
    """Runs the demo; its exit code says whether every answer was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wire", choices=("auto", "native", "grpc.aio"), default="auto", help="the gRPC front end")
    parser.add_argument("--listen", default="", metavar="ADDRESS", help="where the server listens; any free port")
    parser.add_argument(
        "--watch", type=float, default=0.0, metavar="SECONDS", help="go on calling for so long, to be watched"
    )
    arguments = parser.parse_args()
    model = Path(__file__).parent.parent / "build" / "demo" / "digits.onnx"

    with console.status("training a classifier on scikit-learn's digits"):
        images, true_digits, labels, probabilities = train(model)
    own = float(np.mean(labels == true_digits))
    console.print(
        f"trained: {model.name}, {model.stat().st_size / 1024:.0f} KiB, accuracy {own:.1%} on held-out images\n"
    )

    with served(model, arguments.wire, arguments.listen) as server, Client(server.address) as client:
        predictions, seconds, took = asyncio.run(call_concurrently(server.address, images))
        count = check(predictions, labels, probabilities)
        p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
        accuracy = float(np.mean([p["label"][0] == true_digits[int(p.request_id)] for p in predictions]))
        console.print(
            f"Predict: {count} requests from {CALLERS} callers, {count / took:,.0f} requests/s, "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        )
        console.print(f"  accuracy {accuracy:.1%}, every answer equal to the model's own\n")

        until = time.perf_counter() + arguments.watch
        while time.perf_counter() < until:
            check(asyncio.run(call_concurrently(server.address, images))[0], labels, probabilities)

        began = time.perf_counter()
        order = np.tile(np.arange(len(images)), REPEATS)
        streamed = 0
        for prediction, row in zip(
            client.stream("digits", ({"pixels": images[row : row + 1]} for row in order), ordered=True),
            order,
            strict=True,
        ):
            if prediction["label"][0] != labels[row]:
                sys.exit(f"image {row}: the stream's answer is not the model's own")
            streamed += 1
        took = time.perf_counter() - began
        console.print(f"StreamPredict: {streamed} items on one stream, {streamed / took:,.0f} items/s, in order\n")

        show_batches(client)
        show_refusal(client)
        show_digits(images, labels, true_digits)
        asyncio.run(submit_and_kill(server, images, labels, probabilities))
        console.print(
            "[dim]The rates are those of one Python caller; `make bench` measures the server with a native one.[/]\n"
        )


if __name__ == "__main__":
    main()
