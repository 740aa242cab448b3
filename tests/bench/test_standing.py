"""What a start and idling cost, measured on a real server."""

from bench import standing
from bench.models import make, read_calls


def test_a_start_has_its_stages(tmp_path):
    """It listens, then says SERVING, then answers; what it measured is kept for the next start."""
    files = make("small", tmp_path)
    request = read_calls(files.calls)[0][0]
    first = standing.start(files.model, request, tmp_path / "cache")
    assert 0 < first.listens <= first.serves <= first.answers
    assert list((tmp_path / "cache").iterdir())


def test_idling_is_looked_at(tmp_path):
    """A process has memory and threads, and nearly no work."""
    files = make("small", tmp_path)
    found = standing.idle(files.model, tmp_path / "cache", 0.5, watched=False)
    assert found.memory_mib > 10
    assert found.threads >= 3
    assert 0 <= found.cpu_ms < 1000
    assert 0 < found.wake_ups < 100  # none of its threads looks again and again whether something has come
