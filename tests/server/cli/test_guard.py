"""Exit codes, and errors in one sentence, in processes of their own as people see them."""

import os
import signal
import subprocess
import sys

import pytest

from forebay_server.cli import guard, root
from tests.waiting import eventually


def run(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")}
    return subprocess.run(
        [sys.executable, "-m", "forebay_server", *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (
            ["serve"],
            2,
            "there is no model to serve; name one (forebay serve model.onnx), or a --config with [[models]]",
        ),
        (["serve", "nowhere.onnx"], 2, "nowhere.onnx: no such file"),
        (["serve", "--set", "server.wires=x", "synthetic:"], 2, "--set: server.wires is not a setting"),
        (["sevre"], 2, "No such command 'sevre'"),
        (["predict"], 2, "Missing argument 'MODEL'"),
        (["health", "--address", "127.0.0.1:1"], 1, "UNAVAILABLE: "),
        (["models", "--tls-ca", "nowhere.pem"], 2, "Invalid value for '--tls-ca'"),
        (["models", "--tls-cert", __file__], 2, "--tls-cert and --tls-key go together"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_are_one_sentence_and_a_code(arguments, code, sentence):
    """On stderr, with nothing on stdout and no traceback."""
    ended = run(*arguments)

    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.startswith(f"forebay: {sentence}")
    assert ended.stderr.count("\n") == 1


def test_a_traceback_is_shown_when_asked_for():
    """For those who mend Forebay."""
    ended = run("serve", "nowhere.onnx", FOREBAY_DEBUG="1")

    assert ended.returncode == 2
    assert "Traceback" in ended.stderr
    assert ended.stderr.endswith("forebay: nowhere.onnx: no such file\n")


def test_the_version_is_told():
    """As in the package."""
    ended = run("--version")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("forebay 0.")


def test_a_reader_that_goes_away_is_no_fault():
    """`forebay config | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "forebay_server", "config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()

    assert (process.returncode, errors) == (1, b"")


@pytest.mark.parametrize("arguments", [["config"], ["--help"], ["check", "--no-load", "synthetic:"]], ids=" ".join)
def test_a_full_disk_is_no_fault(arguments):
    """One sentence and code 1; nothing fails once more at the exit."""
    with open("/dev/full", "w") as full:  # noqa: PTH123  # a device, not a file
        ended = subprocess.run(
            [sys.executable, "-m", "forebay_server", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    sentence = "forebay: what was to be written could not be: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, sentence)


def test_a_closed_stdout_is_no_fault():
    """`forebay check ... >&-`: nobody wants to see it."""
    command = [sys.executable, "-m", "forebay_server", "check", "--no-load", "synthetic:"]
    ended = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_control_c_is_quiet(server, tmp_path):
    """Code 130, whatever the command was doing."""
    (tmp_path / "x.csv").write_text("1,2\n")
    arguments = ["predict", "slow", str(tmp_path / "x.csv"), "--address", server.address]
    with subprocess.Popen(
        [sys.executable, "-m", "forebay_server", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        eventually(lambda: len(server.log.requests) >= 2, "the command calls", 30)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)

    assert (process.returncode, out, errors.strip()) == (130, b"", b"")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (RuntimeError("boom"), 70, "forebay: internal fault: RuntimeError: boom; FOREBAY_DEBUG=1 shows where\n"),
        (PermissionError(13, "Permission denied", "x.pem"), 1, "forebay: x.pem: Permission denied\n"),
        (guard.Failed("3 rows failed"), 1, "forebay: 3 rows failed\n"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(3), 3, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whatever_is_raised_ends_in_a_code(forebay, monkeypatch, error, code, text):
    """Nothing gets past the guard."""

    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(root.root, "main", fail)

    assert forebay() == (code, "", text)


def test_help_is_fast_and_light():
    """`forebay --help` loads neither grpc nor numpy nor rich nor msgspec."""
    program = (
        "import sys; from forebay_server.cli import main; code = main(['--help']);"
        "print(sorted({'grpc', 'numpy', 'rich', 'msgspec', 'structlog', 'google.protobuf'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert ended.stdout.endswith("[]\n")
    assert "serve" in ended.stdout
