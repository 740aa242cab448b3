"""Sessions bound by address: the same code as on a GPU, with buffers of the host and the CPU provider."""

import ctypes
import threading

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from forebay_server.engines.base import OutOfMemory
from forebay_server.engines.gpu.device import CaptureFailed, Recording
from forebay_server.engines.onnxruntime import OnnxRuntimeEngine
from forebay_server.engines.onnxruntime_computation import RecordingComputation, SessionComputation
from forebay_server.tensors import NUMPY_DTYPES, DataType


@pytest.fixture
def bound(settings):
    """Makes a computation of a file, on a session of its own."""
    made = []

    def bind(path, form=SessionComputation):
        engine = OnnxRuntimeEngine(path, settings())
        spec = engine.load()
        engine.close()
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        computation = form(onnxruntime, session, spec, device=None)
        made.append(computation)
        return computation

    yield bind
    for computation in made:
        computation.close()


def run(computation, *inputs, outputs):
    """Runs a batch in place."""
    addresses = [array.ctypes.data for array in inputs], [array.ctypes.data for array in outputs]
    computation.enqueue(addresses[0], [array.shape for array in inputs], addresses[1], None)


def test_a_run_reads_and_writes_where_it_is_told(onnx_models, bound):
    """Values are the model's own; two batches in two sets of buffers don't mix."""
    computation = bound(onnx_models.make_linear_model())
    assert (computation.capturable, isinstance(computation, Recording)) == (True, False)
    sets = [(np.empty((rows, 64), "f4"), np.full((rows, 10), -1, "f4")) for rows in (3, 3, 5)]
    for turn in range(6):
        x, y = sets[turn % 3]
        x[...] = turn
        run(computation, x, outputs=[y])
        assert np.array_equal(y, onnx_models.linear(x))


@pytest.mark.parametrize("name", ["BOOL", "UINT8", "INT8", "INT32", "INT64", "FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"])
def test_every_type_is_bound(onnx_models, bound, name):
    """BF16, of which numpy knows nothing, as well."""
    kinds = {"FLOAT16": DataType.FP16, "BFLOAT16": DataType.BF16, "FLOAT": DataType.FP32, "DOUBLE": DataType.FP64}
    dtype = NUMPY_DTYPES[kinds.get(name) or DataType[name]]
    computation = bound(onnx_models.make_identity_model(name))
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    y = np.zeros_like(x)
    run(computation, x, outputs=[y])
    assert y.tobytes() == x.tobytes()


def test_shapes_follow_from_the_names_of_dimensions(onnx_models, bound):
    """Free dimensions of outputs are as long as those of their name in the inputs."""
    assert bound(onnx_models.make_linear_model()).output_shapes([(7, 64)]) == [(7, 10)]
    assert bound(onnx_models.make_sequence_model()).output_shapes([(2, 9)]) == [(2, 9)]
    assert bound(onnx_models.make_two_input_model()).output_shapes([(4, 3), (4, 3)]) == [(4, 3), (4, 3)]
    assert bound(onnx_models.make_embedding_model()).output_shapes([(4, 3)]) == [(4, 3, 2)]


def nonzero(onnx_models, dimension):
    """A model whose output is as long as its input has elements that are not 0; `dimension` is what its file says."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    inputs, outputs = [("x", TensorProto.FLOAT, ["N"])], [("y", TensorProto.INT64, [1, dimension])]
    return onnx_models.save("nonzero", [node], inputs, outputs)


@pytest.mark.parametrize("dimension", ["K", None])
def test_outputs_of_unknown_shape_are_told_after_the_run(onnx_models, bound, dimension):
    """Their memory is ONNX Runtime's; each run may give another shape."""
    computation = bound(nonzero(onnx_models, dimension))
    assert computation.output_shapes([(4,)]) is None
    for values in ([0, 1, 0, 2], [0, 0, 0, 3], [1, 1, 1, 1]):
        x = np.array(values, "f4")
        run(computation, x, outputs=[])
        ((address, shape),) = computation.results()
        count = np.count_nonzero(x)
        assert shape == (1, count)
        found = np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(address))
        assert found.tolist() == np.nonzero(x)[0].tolist()


def test_a_promise_that_the_model_breaks_is_a_fault_of_the_batch(onnx_models, bound):
    """ONNX Runtime does not write past the end of what it was given."""
    computation = bound(nonzero(onnx_models, "N"))
    x, y = np.array([0, 1, 0, 2], "f4"), np.full((1, 4), -1, "i8")
    with pytest.raises(Exception, match=r"(?i)shape"):
        run(computation, x, outputs=[y])
    assert y.tolist() == [[-1] * 4]


def test_no_memory_is_told_apart(onnx_models, bound):
    """What the arena says is OutOfMemory; other faults stay what they are."""
    computation = bound(onnx_models.make_linear_model())

    class Session:
        text = "Non-zero status code: BFCArena: Failed to allocate memory for requested buffer of size 9"

        def run_with_iobinding(self, binding, options):
            raise RuntimeError(self.text)

        io_binding = computation._session.io_binding

    computation._session = Session()
    x, y = np.ones((1, 64), "f4"), np.ones((1, 10), "f4")
    with pytest.raises(OutOfMemory, match="BFCArena"):
        run(computation, x, outputs=[y])
    Session.text = "Gather: index 7 out of bounds"
    with pytest.raises(RuntimeError, match="out of bounds"):
        run(computation, x, outputs=[y])


class Watched:
    """A session that remembers in which thread it ran, and under which graph id."""

    def __init__(self, session):
        self._session = session
        self.runs = []
        self.io_binding, self.get_inputs, self.get_outputs = session.io_binding, session.get_inputs, session.get_outputs

    def run_with_iobinding(self, binding, options):
        self.runs.append((threading.get_ident(), options.get_run_config_entry("gpu_graph_id"), binding))
        self._session.run_with_iobinding(binding, options)


def test_a_graph_id_belongs_to_one_combination_of_shapes_and_addresses(onnx_models, bound):
    """Every recorded run has an id of its own and always the same binding; other runs have none; all in one thread."""
    computation = bound(onnx_models.make_linear_model(), RecordingComputation)
    assert isinstance(computation, Recording)
    assert not computation.capturable
    watched = computation._session = Watched(computation._session)
    sets = [(np.ones((rows, 64), "f4"), np.zeros((rows, 10), "f4")) for rows in (2, 2, 4)]
    run(computation, sets[0][0], outputs=[sets[0][1]])
    launches = [computation.record_run([x.ctypes.data], [x.shape], [y.ctypes.data], None) for x, y in sets]
    launches.append(computation.record_run(*addresses_of(sets[1]), None))
    run(computation, sets[2][0], outputs=[sets[2][1]])
    for number, (x, y) in enumerate(sets):
        x[...] = 10 + number
        launches[number]()
        assert np.array_equal(y, onnx_models.linear(x))
    launches[3]()

    ids = [graph for _, graph, _ in watched.runs]
    assert ids == ["-1", *["1"] * 3, *["2"] * 3, *["3"] * 3, *["2"] * 3, "-1", "1", "2", "3", "2"]
    assert len({thread for thread, _, _ in watched.runs}) == 1
    assert watched.runs[0][0] != threading.get_ident()
    bindings = {}
    for _, graph, binding in watched.runs:
        bindings.setdefault(graph, set()).add(id(binding))
    assert [len(bindings[graph]) for graph in ("1", "2", "3")] == [1, 1, 1]


def addresses_of(pair):
    """A set of buffers as `record_run` wants it."""
    x, y = pair
    return [x.ctypes.data], [x.shape], [y.ctypes.data]


def test_what_cannot_be_recorded_says_so(onnx_models, bound):
    """Outputs that ONNX Runtime allocates have no address that a graph could hold."""
    computation = bound(nonzero(onnx_models, "K"), RecordingComputation)
    x = np.ones(4, "f4")
    with pytest.raises(CaptureFailed, match="known only after a run"):
        computation.record_run([x.ctypes.data], [x.shape], [], None)


def test_runs_do_not_wait_for_the_device(onnx_models, bound):
    """The run options are those that keep ONNX Runtime from synchronising."""
    computation = bound(onnx_models.make_linear_model())
    assert computation._plain.get_run_config_entry("disable_synchronize_execution_providers") == "1"
