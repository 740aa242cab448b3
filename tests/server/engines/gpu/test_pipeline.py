"""How batches go through a device: exact instants of each step, whose the outputs are, and what faults leave behind."""

import numpy as np
import pytest

from forebay_server.engines.base import EngineBatch, EngineDead, OutOfMemory
from forebay_server.engines.gpu.device import DeviceError
from forebay_server.engines.gpu.pipeline import GpuInstance
from forebay_server.engines.gpu.pool import GRAIN, Budget
from tests.server.engines.gpu.computations import ENDLESS, ILLEGAL, Doubling, SelfRecording, spec_of
from tests.server.engines.gpu.conftest import BANDWIDTH, ROW, doubled, put
from tests.server.engines.gpu.fake import FakeDevice
from tests.server.engines.threads import elsewhere


def spans(device, *kinds):
    """Operations in whole tenths of milliseconds."""
    return [(kind, round(begin * 1e4), round(end * 1e4)) for kind, begin, end in device.kinds(*kinds)]


def test_one_batch_is_uploaded_computed_and_downloaded(make):
    """Each step begins where the one before ends: 2 rows of 1 ms each way, 4 ms between."""
    world = make()

    assert doubled(world.instance.infer(put(world.instance, [3, 5]))) == [3, 5]
    assert spans(world.device, "upload", "compute", "download") == [
        ("upload", 0, 20),
        ("compute", 20, 60),
        ("download", 60, 80),
    ]


def test_neighbours_overlap(make):
    """Batch k+1 uploads while k computes and k-1 is downloaded: of 10 batches each costs no more than its 4 ms."""
    world = make(depth=3)
    instance = world.instance
    flying, answers = [], []
    for number in range(10):
        if len(flying) == 3:
            answers += doubled(instance.collect(flying.pop(0)))
        flying.append(instance.issue(put(instance, [number, number])))
    for ticket in flying:
        answers += doubled(instance.collect(ticket))

    assert answers == [number for number in range(10) for _ in range(2)]
    # The first upload, then computing without a gap, then the last download.
    assert spans(world.device, "compute") == [("compute", 20 + 40 * n, 60 + 40 * n) for n in range(10)]
    uploads, downloads = spans(world.device, "upload"), spans(world.device, "download")
    assert uploads[:3] == [("upload", 0, 20), ("upload", 20, 40), ("upload", 40, 60)]
    # The fourth is put together when the first has come back, in the middle of the second's computing.
    assert uploads[3:5] == [("upload", 80, 100), ("upload", 120, 140)]
    assert downloads == [("download", 60 + 40 * n, 80 + 40 * n) for n in range(10)]


def test_depth_one_is_one_after_the_other(make):
    """Nothing of a batch begins before the one before has come back."""
    world = make(depth=1)
    for value in (1, 2):
        assert doubled(world.instance.infer(put(world.instance, [value]))) == [value]

    assert spans(world.device, "upload", "compute", "download")[3:] == [
        ("upload", 60, 70),
        ("compute", 70, 110),
        ("download", 110, 120),
    ]


def test_more_than_the_depth_is_refused(make):
    """Its memory would be overwritten under the batch that has it."""
    world = make(depth=2)
    tickets = [world.instance.issue(put(world.instance, [value])) for value in (1, 2)]
    with pytest.raises(RuntimeError, match="more than 2 batches"):
        world.instance.stage([(1, ROW)])

    assert [doubled(world.instance.collect(ticket)) for ticket in tickets] == [[1], [2]]


def test_outputs_are_the_callers(make):
    """They stay as they are while the memory that they came through is used again."""
    world = make(depth=1)
    first = world.instance.infer(put(world.instance, [1, 2, 3]))
    world.instance.infer(put(world.instance, [7, 8, 9]))

    assert doubled(first) == [1, 2, 3]
    assert first[0].flags.owndata


def test_padding_is_not_given_out(make):
    """Of 4 padded rows the 3 that hold requests come back."""
    world = make()
    batch = put(world.instance, [1, 2, 3, 0])
    batch.rows = 3

    assert doubled(world.instance.infer(batch)) == [1, 2, 3]


def test_an_output_that_does_not_follow_the_batch_is_given_out_whole(make):
    """Nobody may think that its first rows belong to somebody: the loader looks at its shape."""

    class Whole(Doubling):
        def output_shapes(self, shapes):
            return [(shapes[0][0] + 1, shapes[0][1])]

    world = make(computation=Whole)

    assert world.instance.infer(put(world.instance, [1, 2]))[0].shape == (3, ROW)


def test_arrays_from_elsewhere_are_copied_into_staging(make):
    """A caller that does not put its batch together where it is told to gets the same answer."""
    world = make()
    x = np.full((2, ROW), 4, np.float32)

    assert doubled(world.instance.infer(EngineBatch([x], 2))) == [4, 4]


def test_nothing_is_allocated_for_requests(make):
    """After the largest shape has been seen, whatever comes in whatever order."""
    world = make(depth=2)
    world.instance.reserve([(16, ROW)])
    before = world.device.allocations
    for rows in (1, 16, 3, 8, 16, 2, 5):
        world.instance.collect(world.instance.issue(put(world.instance, range(rows))))

    assert before == world.device.allocations == 2 * 4
    assert world.device.used == 2 * 2 * GRAIN


def test_warm_up_makes_room_in_all_sets(make):
    """So that the first requests, which take the other ones, find it."""
    world = make(depth=3)
    world.instance.infer(put(world.instance, range(16)))
    before = world.device.allocations
    for _ in range(3):
        world.instance.collect(world.instance.issue(put(world.instance, range(16))))

    assert before == world.device.allocations == 3 * 4


def test_the_computation_may_bring_its_stream(make):
    """It is the instance's from then on."""
    device = FakeDevice(bandwidth=BANDWIDTH)
    stream = device.stream()
    world = make(device=device, stream=stream)
    assert doubled(world.instance.infer(put(world.instance, [1]))) == [1]

    assert world.instance._compute is stream


def test_rows_of_nan_do_not_touch_their_neighbours(make):
    """Nor those of the batches around them."""
    world = make(depth=2)
    instance = world.instance
    tickets = [instance.issue(put(instance, values)) for values in ([1, np.nan, 2], [3, 4, 5])]
    first, second = (doubled(instance.collect(ticket)) for ticket in tickets)

    assert [first[0], first[2]] == [1, 2]
    assert np.isnan(first[1])
    assert second == [3, 4, 5]


# --- Graphs


def test_graphs_are_captured_at_warm_up_for_all_sets(make):
    """New shapes run plainly once in each set, then as a graph; further ones of the same shapes too."""
    world = make(depth=2, graphs=100)
    instance = world.instance
    assert doubled(instance.infer(put(instance, [1, 2]))) == [1, 2]
    assert doubled(instance.infer(put(instance, [3, 4]))) == [3, 4]
    assert doubled(instance.infer(put(instance, [5, 6]))) == [5, 6]

    # Enqueued plainly twice, and under capture twice.
    assert world.computation.enqueued == [2, 2, 2, 2]
    assert [kind for kind, _, _ in world.device.kinds("compute", "graph")] == ["compute"] * 2 + ["graph"] * 3


def test_nothing_is_captured_for_a_request(make):
    """What another thread runs, or what is issued, is a request: new shapes run plainly, known ones as a graph."""
    world = make(depth=2, graphs=100)
    instance = world.instance
    instance.infer(put(instance, [1, 2]))
    before = len(world.device.kinds("graph"))
    assert doubled(elsewhere(instance.infer, put(instance, [1, 2, 3]))) == [1, 2, 3]
    assert doubled(instance.collect(instance.issue(put(instance, [4, 5, 6])))) == [4, 5, 6]
    assert len(world.device.kinds("graph")) == before
    assert doubled(elsewhere(instance.infer, put(instance, [8, 9]))) == [8, 9]

    assert len(world.device.kinds("graph")) == before + 1
    assert world.computation.enqueued == [2, 2, 2, 2, 3, 3]


def test_a_graph_runs_on_what_was_uploaded_for_it(make):
    """Two batches of the same shapes in flight use graphs of their own, on memory of their own."""
    world = make(depth=2, graphs=100)
    instance = world.instance
    for rows in (1, 2, 4):
        instance.infer(put(instance, range(rows)))
    tickets = [instance.issue(put(instance, values)) for values in ([1, 2], [3, 4, 5, 6])]

    assert [doubled(instance.collect(ticket)) for ticket in tickets] == [[1, 2], [3, 4, 5, 6]]


def test_graphs_survive_larger_shapes(make):
    """Addresses are part of a graph, so memory that it uses stays where it is when more is needed."""
    world = make(depth=2, graphs=100, width=GRAIN // 4)
    instance = world.instance
    for rows in (1, 2, 3, 4, 6, 8, 12, 16):
        instance.infer(put(instance, range(rows), GRAIN // 4))
    world.computation.enqueued.clear()
    for rows in (2, 1, 16, 3, 12, 4, 8, 6):
        assert doubled(instance.collect(instance.issue(put(instance, range(rows), GRAIN // 4)))) == list(range(rows))

    assert world.computation.enqueued == []


def test_a_first_run_that_fails_is_no_warm_up(make):
    """The loader tries other inputs of the same shapes: these are captured."""
    world = make(depth=2, graphs=100)
    world.computation.fault = ValueError("ids beyond the vocabulary")
    with pytest.raises(ValueError, match="vocabulary"):
        world.instance.infer(put(world.instance, [1, 2]))
    assert doubled(world.instance.infer(put(world.instance, [3, 4]))) == [3, 4]

    assert [kind for kind, _, _ in world.device.kinds("compute", "graph")] == ["compute"] * 2 + ["graph"]


def test_what_can_not_be_captured_runs_plainly(make):
    """It is slower, not wrong."""
    world = make(depth=2, graphs=100)
    world.device.refuse_capture = True
    for _ in range(3):
        assert doubled(world.instance.infer(put(world.instance, [1, 2]))) == [1, 2]

    assert world.device.kinds("graph") == []


def test_allocating_under_capture_ends_the_capture(make):
    """As on a device: the run is not captured, and the instance goes on."""

    class Allocating(Doubling):
        def enqueue(self, inputs, shapes, outputs, stream):
            self.device.memory(16).close()
            super().enqueue(inputs, shapes, outputs, stream)

    world = make(computation=Allocating, graphs=100)

    assert doubled(world.instance.infer(put(world.instance, [1, 2]))) == [1, 2]
    assert world.device.kinds("graph") == []


def test_a_library_that_captures_by_itself_is_asked_to(make):
    """Once for each set of buffers, after a plain run there."""
    world = make(computation=SelfRecording, depth=2, graphs=100)
    for _ in range(2):
        assert doubled(world.instance.infer(put(world.instance, [1, 2]))) == [1, 2]

    assert world.computation.recorded == [2, 2]
    assert world.computation.replayed == [2, 2]


def test_a_library_that_can_not_capture_runs_plainly(make):
    """It says so by CaptureFailed."""
    world = make(computation=SelfRecording, depth=2, graphs=100)
    world.computation.refuses = True

    assert doubled(world.instance.infer(put(world.instance, [1, 2]))) == [1, 2]
    assert world.computation.replayed == []


def test_graphs_are_counted(make):
    """Each holds memory that nobody sees: beyond the limit runs are plain."""
    world = make(depth=2, graphs=4)
    for rows in (1, 2, 3):
        for _ in range(2):
            assert doubled(world.instance.infer(put(world.instance, range(rows)))) == list(range(rows))

    assert len([1 for kind, _, _ in world.device.kinds("graph")]) == 4
    assert world.device.kinds("compute")[-1][0] == "compute"


# --- Outputs of unknown shapes


def test_shapes_that_are_known_after_the_run(make):
    """Rows of zeros are dropped by the computation; its own memory is not written again before it is downloaded."""
    world = make(computation=lambda device: Doubling(device, known=False), width=4, depth=2, graphs=100)
    instance = world.instance
    tickets = [instance.issue(put(instance, values, 4)) for values in ([1, 0, 2], [0, 3, 0])]

    assert [doubled(instance.collect(ticket)) for ticket in tickets] == [[1, 2], [3]]
    assert world.device.kinds("graph") == []


# --- Faults


def test_too_little_memory_leaves_the_instance_usable(make):
    """A batch that is too large for the budget is refused, before it and after it others run."""
    world = make(depth=2, budget=Budget(8 * GRAIN), width=GRAIN // 4)
    instance = world.instance
    assert doubled(instance.infer(put(instance, [1], GRAIN // 4))) == [1]
    with pytest.raises(OutOfMemory, match="budget"):
        put(instance, range(4), GRAIN // 4)

    assert doubled(instance.infer(put(instance, [2], GRAIN // 4))) == [2]


def test_too_little_memory_on_the_device(make):
    """The same from the device itself, and from a computation that finds none for its workspace."""
    world = make(total=4 * GRAIN, depth=1, width=GRAIN // 4, computation=lambda d: Doubling(d, memory_rows=1))
    instance = world.instance
    assert doubled(instance.infer(put(instance, [1], GRAIN // 4))) == [1]
    with pytest.raises(OutOfMemory, match="cudaErrorMemoryAllocation"):
        put(instance, range(3), GRAIN // 4)
    with pytest.raises(OutOfMemory, match="workspace"):
        make(width=4, computation=lambda d: Doubling(d, memory_rows=1)).instance.infer(
            EngineBatch([np.ones((2, 4), np.float32)], 2)
        )

    assert doubled(instance.infer(put(instance, [2], GRAIN // 4))) == [2]


def test_a_batch_that_can_not_be_issued_leaves_its_neighbour_alone(make):
    """The one before it is collected as ever, and its own set is used again."""
    world = make(depth=2)
    instance = world.instance
    ticket = instance.issue(put(instance, [1]))
    world.computation.fault = DeviceError("cudaErrorInvalidConfiguration (9)")
    with pytest.raises(DeviceError):
        instance.issue(put(instance, [2]))
    again = instance.issue(put(instance, [3]))

    assert doubled(instance.collect(ticket)) == [1]
    assert doubled(instance.collect(again)) == [3]


def test_a_sticky_error_comes_late_and_for_good(make):
    """It happens while the kernel runs: whoever waits is told, and so is everybody who comes after."""
    world = make(depth=2)
    instance = world.instance
    tickets = [instance.issue(put(instance, [value])) for value in (ILLEGAL, 2)]
    for ticket in tickets:
        with pytest.raises(EngineDead, match="cudaErrorIllegalAddress") as caught:
            instance.collect(ticket)
        assert caught.value.device == "cuda:0"
    with pytest.raises(EngineDead):
        instance.issue(EngineBatch([np.ones((1, ROW), np.float32)], 1))


def test_the_death_of_a_device_is_that_of_all_its_instances(make):
    """Those on another one go on."""
    device = FakeDevice(bandwidth=BANDWIDTH)
    one, two, other = make(device=device), make(device=device), make(device=FakeDevice(1, bandwidth=BANDWIDTH))
    with pytest.raises(EngineDead):
        one.instance.infer(put(one.instance, [ILLEGAL]))
    with pytest.raises(EngineDead) as caught:
        two.instance.infer(put(two.instance, [1]))

    assert caught.value.device == "cuda:0"
    assert doubled(other.instance.infer(put(other.instance, [1]))) == [1]


def test_what_never_ends_is_waited_for_without_end(make):
    """The watchdog of the scheduler finds it, not the instance; when it ends all the same, so does the wait."""
    world = make(depth=2)
    ticket = world.instance.issue(put(world.instance, [ENDLESS]))
    with pytest.raises(AssertionError, match="for ever"):
        world.instance.collect(ticket)
    world.device.release()

    assert doubled(world.instance.collect(ticket)) == [ENDLESS]


def test_close_waits_for_what_runs_and_lets_go_of_all():
    """In this order: what is enqueued, graphs, computation, memory, events, streams."""
    device = FakeDevice(bandwidth=BANDWIDTH)
    computation = Doubling(device)
    instance = GpuInstance(device, computation, spec_of(ROW), graphs=10)
    instance.infer(put(instance, [1]))
    instance.issue(put(instance, [2]))
    instance.close()

    assert computation.closed
    assert device.open == device.used == 0
    assert len(device.kinds("download")) == 4


def test_streams_are_made_on_the_threads_device(make):
    """Each thread that touches the device has made it its own before."""
    world = make()
    elsewhere(world.instance.infer, put(world.instance, [1]))

    assert len(world.device.users) == 2
