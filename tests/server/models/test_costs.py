"""Measured costs that outlive the process."""

import pytest

from forebay_server.models.costs import CostCache, CostKey, agrees, digest_of

POINTS = [(((64,), (3, 2)), 1, 0.001), (((64,), (3, 2)), 8, 0.004)]


def key(**changes):
    return CostKey(**{"digest": "d", "device": "cpu", "engine": "e", "version": "1", "settings": "[]"} | changes)


def test_what_is_saved_is_loaded(tmp_path):
    """Points come back as they were, also over an older profile; nothing else stays in the folder."""
    cache = CostCache(tmp_path / "deep" / "cache")
    cache.save(key(), POINTS[:1])
    cache.save(key(), POINTS)
    assert CostCache(tmp_path / "deep" / "cache").load(key()) == POINTS
    assert [path.name for path in (tmp_path / "deep" / "cache").iterdir()] == [key().file_name()]


@pytest.mark.parametrize("part", ["digest", "device", "engine", "version", "settings"])
def test_each_part_of_the_key_counts(tmp_path, part):
    """Another file, device, engine, version or setting has costs of its own."""
    cache = CostCache(tmp_path)
    cache.save(key(), POINTS)
    assert cache.load(key(**{part: "other"})) == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe"])
def test_a_damaged_profile_is_ignored(tmp_path, data):
    """A file that is no profile only costs the time to measure."""
    (tmp_path / key().file_name()).write_bytes(data)
    assert CostCache(tmp_path).load(key()) == []


def test_a_profile_with_impossible_values_is_ignored(tmp_path):
    """Times of zero or less would break the scheduler."""
    cache = CostCache(tmp_path)
    cache.save(key(), [(((1,),), 1, 0.0)])
    assert cache.load(key()) == []


def test_a_folder_that_can_not_be_written_is_no_error(tmp_path):
    """Saving fails quietly."""
    (tmp_path / "file").write_text("")
    CostCache(tmp_path / "file" / "cache").save(key(), POINTS)
    CostCache(None).save(key(), POINTS)
    assert CostCache(None).load(key()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_half_off_is_off():
    """Kept costs hold if new ones are within half of them."""
    assert agrees([(1.0, 1.49), (2.0, 1.01)])
    assert not agrees([(1.0, 1.5)])
    assert not agrees([(1.0, 1.0), (2.0, 1.0)])


def test_digest_is_of_the_content(tmp_path):
    """Equal content, equal digest."""
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b") != digest_of(tmp_path / "c")
