"""What error codes mean, against the enumeration of the real package."""

import pytest

from forebay_server.engines.gpu import faults
from forebay_server.engines.gpu.faults import Kind, kind_of


@pytest.mark.parametrize(
    ("code", "kind"), [(2, Kind.MEMORY), (700, Kind.STICKY), (719, Kind.STICKY), (900, Kind.CAPTURE), (1, Kind.CALL)]
)
def test_kinds(code, kind):
    """One of each."""
    assert kind_of(code) is kind


def test_codes_have_the_names_of_the_runtime():
    """The tables are the real package's, by number and name; no code is in two."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    tables = [faults.MEMORY, faults.STICKY, faults.CAPTURE]
    for code, name in [entry for table in tables for entry in table.items()]:
        assert runtime.cudaError_t(code).name == name
    assert len({code for table in tables for code in table}) == sum(map(len, tables))
    # All of which its reference says that only a new process helps.
    words = {int(error): " ".join((error.__doc__ or "").split()) for error in runtime.cudaError_t}
    hopeless = {code for code, text in words.items() if "the process must be terminated" in text}
    assert 700 in hopeless
    assert hopeless <= set(faults.STICKY)
    assert runtime.cudaError_t.cudaSuccess == faults.SUCCESS
    assert runtime.cudaError_t.cudaErrorNotReady == faults.NOT_READY
