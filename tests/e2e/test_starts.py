"""Starts that fail: one clear sentence on stderr, an exit code, and no traceback."""

import socket

import pytest


def failed(server, code, *words):
    """The process has ended with this code and said so in one sentence."""
    assert server.wait(20) == code, server.stderr
    assert "Traceback" not in server.stderr
    sentences = [line for line in server.lines if line.startswith("forebay: ")]
    assert len(sentences) == 1, server.stderr
    for word in words:
        assert word in sentences[0]
    assert server.popen.stdout.read() == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", ["empty"]), (b"\x08\x01garbage" * 100, []), ("truncated", [])],
    ids=["empty", "garbage", "truncated"],
)
def test_a_corrupt_model(process, onnx_models, tmp_path, content, words):
    """A model file that can't be read is named."""
    file = onnx_models.make_linear_model()
    file.write_bytes(file.read_bytes()[:1000] if content == "truncated" else content)
    failed(process(str(file)), 1, "linear.onnx", *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.onnx"], ["absent.onnx", "no such file"]),
        (["notes.txt"], ["notes.txt"]),
        (["."], []),
        (["--config", "bad.toml"], ["bad.toml"]),
        (["--config", "unknown.toml"], ["unknown.toml", "nonsense"]),
        (["synthetic:", "--nonsense"], ["--nonsense"]),
        (["synthetic:", "--set", "server.drain_grace_s=soon"], ["drain_grace_s"]),
        (["synthetic:", "synthetic:base_ms=1"], ["synthetic"]),
        (["synthetic:", "--tls-cert", "absent.pem", "--tls-key", "absent.pem"], ["absent.pem"]),
        (["synthetic:", "--tls-cert", "notes.txt", "--tls-key", "notes.txt"], ["notes.txt"]),
        (["synthetic:", "--tls-cert", "notes.txt"], ["key"]),
        (["synthetic:", "--listen", "127.0.0.1:99999"], ["99999"]),
        (["synthetic:", "--listen", "host.invalid:0"], ["host.invalid"]),
        (["synthetic:", "--listen", "unix:absent/folder/socket"], ["absent/folder/socket"]),
        (["synthetic:nonsense=1"], ["nonsense"]),
        (["python:absent_module:predict"], ["absent_module"]),
        (["synthetic:hang=1", "--run", "inline"], ["inline"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] not in value[1:] else None,
)
def test_wrong_settings(process, tmp_path, front_end, arguments, words):
    """What is wrong is named, in the words of the operator."""
    if front_end != "native" and not any(word.startswith(("--listen", "--tls")) for word in arguments):
        pytest.skip("the front end is not reached")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "bad.toml").write_text("[server\n")
    (tmp_path / "unknown.toml").write_text('[server]\nnonsense = 1\n[[models]]\npath = "synthetic:"\n')
    server = process(*arguments, listen="--listen" not in arguments)
    code = server.wait(20)
    assert code in (1, 2), server.stderr
    failed(server, code, *words)


def test_a_port_in_use(process):
    """A taken port is an error, which names it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        failed(process("synthetic:", "--listen", f"127.0.0.1:{port}", listen=False), 2, str(port))


def test_a_wrong_toml_beside_a_model(process, onnx_models):
    """Settings beside a model that can't be read are named, with the field."""
    file = onnx_models.make_linear_model()
    file.with_suffix(".toml").write_text("[batching]\nmax_batch_size = -1\n")
    failed(process(str(file)), 2, "linear.toml", "max_batch_size")


def test_one_bad_model_among_good_ones(process, onnx_models):
    """A server does not start with a part of its models."""
    file = onnx_models.make_linear_model()
    file.write_bytes(b"nonsense")
    failed(process("synthetic:", str(file)), 1, "linear.onnx")
