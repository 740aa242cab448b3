"""Signals to a process of its own: what was accepted is answered, what comes later is told so, and it ends well."""

import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from forebay.v1 import inference_pb2
from tests.certificates import Authority
from tests.serving import array_of, details_of, request_of, row
from tests.waiting import eventually

Code = grpc.StatusCode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_no_accepted_call(process, call, front_end, number):  # noqa: C901  # one scenario
    """32 callers and 2 streams see right answers or, later, UNAVAILABLE; health turns first; the exit code is 0."""
    server = process("synthetic:base_ms=5,shape=4", "--max-batch-size", "16", "--probe", "127.0.0.1:0").ready()
    callers = [call(server) for _ in range(4)]
    probe = call(server, "probe")
    wrong, answered, ended = [], [], []
    signalled = threading.Event()
    over = {Code.UNAVAILABLE} if front_end == "native" else {Code.UNAVAILABLE, Code.CANCELLED}

    def unary(index):
        number_ = index * 1000.0
        while True:
            number_ += 1
            try:
                response = callers[index % 4].predict("synthetic", row(number_))
            except grpc.RpcError as error:
                if error.code() not in over or not signalled.is_set():
                    wrong.append(error)
                ended.append(index)
                return
            if not np.array_equal(array_of(response.outputs[0]), row(number_)):
                wrong.append(number_)
            answered.append(index)

    notices = []

    def stream(index):  # noqa: C901  # every outcome of an item is judged here
        sent = {}
        told = threading.Event()

        def messages():
            for ident in range(10**6):
                if told.is_set():
                    return
                sent[ident] = "open"
                item = inference_pb2.StreamItem(id=ident, request=request_of("synthetic", row(ident)))
                yield inference_pb2.StreamPredictRequest(items=[item])
                time.sleep(0.001)

        try:
            for message in callers[index].inference.StreamPredict(messages(), timeout=30):
                if message.HasField("drain"):
                    notices.append(index)
                    told.set()
                for result in message.results:
                    if result.HasField("error"):
                        if b"DRAINING" not in result.error.SerializeToString():
                            wrong.append(result)
                        sent[result.id] = "refused"
                    else:
                        if not np.array_equal(array_of(result.response.outputs[0]), row(result.id)):
                            wrong.append(result)
                        if sent[result.id] != "open":
                            wrong.append(result)
                        sent[result.id] = "answered"
                        answered.append(index)
        except grpc.RpcError as error:
            if error.code() not in over:
                wrong.append(error)
        ended.append(index)

    threads = [threading.Thread(target=unary, args=(n,)) for n in range(32)]
    threads += [threading.Thread(target=stream, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(answered) > 300, "load")
    assert probe.serving()
    signalled.set()
    server.signal(number)
    assert server.wait() == 0, server.stderr
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert wrong == []
    assert len(notices) == 2
    assert server.events("stopped")[0]["unanswered"] == 0


def test_the_probe_goes_on_answering(process, call):
    """During a drain health is NOT_SERVING on the probe exposure, while accepted work goes on."""
    server = process("synthetic:base_ms=700", "--max-batch-size", "1", "--probe", "127.0.0.1:0").ready()
    caller, probe = call(server), call(server, "probe")
    assert probe.serving()
    future = caller.later("synthetic", row(1))
    time.sleep(0.1)
    server.signal(signal.SIGTERM)
    eventually(lambda: not probe.serving(), "health turns", 2)
    assert not future.done()
    assert future.result().outputs
    assert server.wait() == 0


def test_the_delay_before_a_drain(process, call):
    """During `drain_delay_s` health is NOT_SERVING already and calls are still taken."""
    server = process("synthetic:", "--set", "server.drain_delay_s=0.7").ready()
    caller = call(server)
    assert caller.predict("synthetic", row(1)).outputs
    server.signal(signal.SIGTERM)
    eventually(lambda: not caller.serving(), "health turns", 2)
    assert caller.predict("synthetic", row(1)).outputs
    assert server.wait() == 0


def test_a_second_signal_ends_at_once(process, call):
    """Who does not want to wait for the drain signals again."""
    server = process("synthetic:base_ms=1,hang=9").ready()
    caller = call(server)
    assert caller.predict("synthetic", row(1)).outputs
    caller.later("synthetic", row(9))
    time.sleep(0.2)
    server.signal(signal.SIGTERM)
    server.await_event("draining")
    server.signal(signal.SIGTERM)
    assert server.wait(3) == 128 + signal.SIGTERM


ELSEWHERE = """
import signal, sys, threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
from forebay_server.cli import main
sys.exit(main())
"""
"""A server of whose threads only one gets SIGTERM, and that is not the main thread."""


def test_a_signal_to_another_thread_ends_it_too(front_end, tmp_path):
    """Of two signals at once the kernel may give one to any thread: it must not be overlooked."""
    arguments = ["serve", "synthetic:", "--wire", front_end, "--listen", "127.0.0.1:0", "--log-format", "json"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([sys.executable, "-c", ELSEWHERE, *arguments], stderr=log)
    try:
        eventually(lambda: "model_ready" in (tmp_path / "log").read_text(), "it serves", 30)
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.wait()


def test_a_hung_model_does_not_keep_the_process(process, call):
    """A batch that never ends is given up at the end of the grace: its caller is told, and the exit code is 1."""
    server = process("synthetic:base_ms=1,hang=9", "--drain-grace-s", "0.5").ready()
    caller = call(server)
    assert caller.predict("synthetic", row(1)).outputs
    future = caller.later("synthetic", row(9))
    time.sleep(0.2)
    begin = time.monotonic()
    server.signal(signal.SIGTERM)
    error = future.exception()
    assert error.code() is Code.UNAVAILABLE
    assert details_of(error)[1] == "DRAINING"
    assert server.wait() == 1
    assert time.monotonic() - begin < 8
    assert "Traceback" not in server.stderr


def test_a_signal_while_a_model_loads(process, tmp_path):
    """A server that is still loading ends as well, with 0."""
    (tmp_path / "e2e_slow.py").write_text(
        "import time\nfrom forebay_server.engines.python import model\n"
        "@model(inputs={'x': ('FP32', (-1, 4))}, outputs={'y': ('FP32', (-1, 4))})\n"
        "class Slow:\n"
        "    def load(self):\n        time.sleep(60)\n"
        "    def infer(self, x):\n        return x\n"
    )
    server = process("python:e2e_slow.py:Slow")
    server.await_event("listening")
    time.sleep(0.2)
    server.signal(signal.SIGTERM)
    assert server.wait(10) == 0
    assert "Traceback" not in server.stderr


def serial(address, authority):
    """The serial number of the certificate that a server shows."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=authority.ca_path)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), 5) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        return tls.getpeercert()["serialNumber"]


def test_hangup_renews_certificates(process, call, tmp_path):
    """SIGHUP shows new connections the new certificate; one that can't be used is reported, and the old one stays."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    server = process("synthetic:", "--tls-cert", certificate, "--tls-key", key).ready()
    address = server.addresses["public"].replace("127.0.0.1", "localhost")
    host = address.rpartition(":")[0]
    assert host == "localhost"
    address = server.addresses["public"]
    credentials = grpc.ssl_channel_credentials(Path(authority.ca_path).read_bytes())
    caller = call(server, credentials=credentials)
    assert caller.predict("synthetic", row(1)).outputs
    first = serial(address, authority)
    authority.issue("server")
    server.signal(signal.SIGHUP)
    server.await_event("certificates_renewed")
    second = serial(address, authority)
    assert second != first
    assert caller.predict("synthetic", row(2)).outputs, "connections go on"
    Path(certificate).write_text("nonsense")
    server.signal(signal.SIGHUP)
    server.await_event("certificates_not_renewed")
    assert serial(address, authority) == second
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("link", [False, True], ids=["file", "link"])
def test_files_that_change_renew_certificates(process, tmp_path, link):
    """Nobody has to send a signal, which in a cluster nobody does; mounted secrets are links that are replaced."""
    authority = Authority(tmp_path)
    files = authority.issue("server")
    if link:
        (tmp_path / "now").symlink_to(".")
        files = [str(tmp_path / "now" / Path(file).name) for file in files]
    options = ["--tls-cert", files[0], "--tls-key", files[1], "--set", "server.certificates_s=0.05"]
    address = process("synthetic:", *options).ready().addresses["public"]
    first = serial(address, authority)
    if link:
        authority.folder = tmp_path / "next"
        authority.folder.mkdir()
    authority.issue("server")
    if link:
        (tmp_path / "swap").symlink_to("next")
        (tmp_path / "swap").rename(tmp_path / "now")
    eventually(lambda: serial(address, authority) != first, "the new certificate is shown", 30)
