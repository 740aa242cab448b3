"""Starts that fail: one clear sentence on stderr, an exit code, and no traceback."""

import socket
import subprocess

import apsw
import pytest

from forebay_server.jobs.postgres import PostgresStore
from forebay_server.jobs.sqlite import SqliteStore
from forebay_server.jobs.sqlite_schema import APPLICATION
from forebay_server.jobs.store import Found, Get, Submit


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


# --- The job store ----------------------------------------------------------------------------------------------------


def newer_file(path):
    """A store of a newer server."""
    connection = apsw.Connection(str(path))
    connection.pragma("application_id", APPLICATION)
    connection.pragma("user_version", 99)
    connection.close()


def damaged_file(path):
    """A store with pages that are not what they were."""
    store = SqliteStore(path)
    store.open(lambda _: None)
    store.close()
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 4] = b"\x5a" * 8192
    path.write_bytes(data)


def strangers_file(path):
    """Somebody else's database."""
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"no database" * 1000), ["is not an SQLite database"]),
        (damaged_file, ["is damaged"]),
        (newer_file, ["has version 99", "newer server"]),
        (strangers_file, ["not a job store"]),
        (lambda path: path.mkdir(), ["is not a file"]),
        (lambda path: path.symlink_to("/dev/null"), ["is not a file"]),
    ],
    ids=["corrupt", "damaged", "newer", "strange", "folder", "device"],
)
def test_a_file_that_is_no_store_for_this_server(process, tmp_path, make, words):
    """One sentence, code 1, nothing listens, and the file is left as it was."""
    path = tmp_path / "jobs.db"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    server = process("synthetic:", "--jobs", "jobs.db")
    failed(server, 1, "jobs.db", *words)
    assert not server.events("listening")
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_folder_that_is_not_there(process):
    """One sentence, code 1."""
    failed(process("synthetic:", "--jobs", "absent/jobs.db"), 1, "absent does not exist")


def test_a_file_that_can_not_be_written(process, tmp_path):
    """On a file system that is read-only: one sentence, code 1; its jobs are there once it can be written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        store = SqliteStore(disk / "jobs.db")
        store.open(lambda _: None)
        submit = Submit("0" * 31 + "1", "t", "", b"f", "m", "", 1, b"p", None, 60.0, None)
        store.apply([submit])
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        failed(process("synthetic:", "--jobs", "disk/jobs.db"), 1, "jobs.db can't be written")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        store.open(lambda _: None)
        assert isinstance(store.apply([Get(submit.id, "t")])[0], Found)
        store.close()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("UPDATE forebay_store SET version = 99", ["version 99", "newer Forebay"]),
        ("DELETE FROM forebay_store", ["forebay_store is empty"]),
        ("ALTER TABLE forebay_store DROP COLUMN epoch", ["damaged", "epoch"]),
        ("DROP TABLE forebay_owners", ["damaged", "forebay_owners"]),
        ("DROP TABLE forebay_jobs", ["damaged", "forebay_jobs"]),
        ("DROP TABLE forebay_processes", ["damaged", "forebay_processes"]),
    ],
    ids=["newer", "emptied", "altered", "no-owners", "no-jobs", "no-processes"],
)
def test_a_database_that_is_no_store_for_this_server(process, postgres, spoil, words):
    """One sentence with code 1, without a password in it."""
    schema = postgres.schema()
    url = postgres.url(tcp=True, schema=schema)
    store = PostgresStore(url)
    store.open(lambda _: None)
    store.close()
    postgres.execute(spoil, schema=schema)
    server = process("synthetic:", "--jobs", url)
    failed(server, 1, *words)
    assert "kept%20out" not in server.stderr
    assert not server.events("listening")
