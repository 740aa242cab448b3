"""Files that are replaced whole."""

import os
import stat

import pytest

from forebay_server.engines import files


def test_a_file_is_replaced_whole(tmp_path):
    """What had it open reads the old one; others may read the new one; nothing else is left."""
    path = tmp_path / "a"
    files.replace(path, b"old")
    with path.open("rb") as reader:
        files.replace(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    """And no half a file."""
    path = tmp_path / "a"
    files.replace(path, b"old")

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
