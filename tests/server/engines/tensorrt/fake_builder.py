"""The part of the make-believe TensorRT that builds plans, shaped by NVIDIA's documentation of 10.13 to 11.

`Machine.builder_told` holds what the last build was told, `Machine.at_step` can look on or cancel.
"""

import hashlib
from pathlib import Path

import onnx

from tests.server.engines.tensorrt import fake_tensorrt as fake

STEPS = 4


class ITensor:
    def __init__(self, info):
        self._info = info
        self.name = info.name
        self.shape = fake.Graph.shape(info)
        self.dtype = fake.Graph.dtype(info)
        self.is_shape_tensor = info.name.startswith("shape")

    def get_dimension_name(self, index):
        name = fake.Graph.dimensions(self._info)[index]
        return name if isinstance(name, str) else ""


class ParserError:
    def __init__(self, node, desc):
        self._node = node
        self._desc = desc

    def node(self):
        return self._node

    def desc(self):
        return self._desc


class INetworkDefinition:
    def __init__(self, flags):
        self.flags = flags
        self.graph = None
        self.data = b""

    num_inputs = property(lambda self: len(self.graph.inputs))
    num_outputs = property(lambda self: len(self.graph.outputs))

    def get_input(self, index):
        return ITensor(self.graph.inputs[index])

    def get_output(self, index):
        return ITensor(self.graph.outputs[index])


class OnnxParser:
    def __init__(self, network, logger):
        self._network = network
        self._errors = []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return self._errors[index]

    def parse_from_file(self, model):
        assert isinstance(model, str)
        try:
            proto = onnx.load(model)  # with the weights that lie in other files
        except Exception:  # noqa: BLE001  # whatever onnx finds wrong
            self._errors.append(ParserError(-1, "Failed to parse the ONNX model."))
            return False
        self._errors += [
            ParserError(number, f"Plugin not found: {node.op_type}")
            for number, node in enumerate(proto.graph.node)
            if node.domain == "nobody"
        ]
        if self._errors:
            return False
        self._network.data = proto.SerializeToString()
        self._network.graph = fake.Graph(self._network.data)
        return True


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):  # noqa: A002  # TensorRT's names
        if not all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True)):
            raise RuntimeError("Shape provided for max is inconsistent with other shapes.")
        self.shapes[input] = [list(min), list(opt), list(max)]


class ITimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return memoryview(self.data)


class IBuilderConfig:
    def __init__(self, builder):
        self._builder = builder
        self.builder_optimization_level = 3
        self.max_aux_streams = -1
        self.profiling_verbosity = fake.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = fake.HardwareCompatibilityLevel.NONE
        self.progress_monitor = None
        self.pools = {}
        self.flags = {fake.BuilderFlag.TF32}
        self.profiles = []
        self.timings = None

    def set_memory_pool_limit(self, pool, pool_size):
        self.pools[pool] = pool_size

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        if self._builder.machine.fails("add_optimization_profile", self._builder):
            return -1
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        data = bytes(serialized_timing_cache)
        if data and not data.startswith(fake.TIMINGS):
            self._builder._report(fake.ErrorCodeTRT.INVALID_ARGUMENT, "not a timing cache")
            return None
        return ITimingCache(data or fake.TIMINGS)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.timings = cache
        return True

    def get_timing_cache(self):
        return self.timings


def module(machine, *, lean=False):  # noqa: C901  # a module is a list of classes
    """The module `tensorrt`, or `tensorrt_lean`, which can't build."""
    trt = fake.make_module(machine, lean=lean)
    if lean:
        return trt

    class Builder(fake.Reporting):
        def __init__(self, logger):
            if machine.device is None:
                raise fake.Crash("no driver")
            super().__init__(logger)
            self.machine = machine

        def create_network(self, flags=0):
            return INetworkDefinition(flags)

        def create_builder_config(self):
            return IBuilderConfig(self)

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            if machine.fails("build_serialized_network", self):
                return None
            free = [info.name for info in network.graph.inputs if -1 in fake.Graph.shape(info)]
            if free and not config.profiles:
                self._report(fake.ErrorCodeTRT.INVALID_STATE, "the network has dynamic inputs, but no profile")
                return None
            assert free or not config.profiles
            machine.builds += 1
            machine.builder_told = {
                "flags": set(config.flags),
                "network": network.flags,
                "pools": dict(config.pools),
                "level": config.builder_optimization_level,
                "timings": bytes(config.timings.data),
                "profiles": list(config.profiles),
                "aux": config.max_aux_streams,
            }
            if not _steps(machine, config.progress_monitor):
                return None
            config.timings.data += hashlib.sha256(network.data).digest()[:4]
            header = {
                "version": machine.version,
                "capability": list(machine.device.compute_capability),
                "hardware": config.hardware_compatibility_level.name,
                "version_compatible": fake.BuilderFlag.VERSION_COMPATIBLE in config.flags,
                "profiles": config.profiles,
            }
            return memoryview(fake.seal(header, network.data))

    for made in (
        fake.NetworkDefinitionCreationFlag,
        fake.MemoryPoolType,
        fake.ProfilingVerbosity,
        fake.BuilderFlag,
        fake.HardwareCompatibilityLevel,
        fake.IProgressMonitor,
        Builder,
        OnnxParser,
    ):
        setattr(trt, made.__name__, made)
    return trt


def _steps(machine, monitor):
    """A phase inside a phase; whether nobody cancelled."""
    if monitor is None:
        return True
    monitor.phase_start("Building Engine", None, STEPS)
    try:
        for step in range(STEPS):
            monitor.phase_start("Timing", "Building Engine", 1)
            going = monitor.step_complete("Timing", 0)
            monitor.phase_finish("Timing")
            if machine.at_step is not None:
                machine.at_step(step)
            if not going or not monitor.step_complete("Building Engine", step):
                return False
        return True
    finally:
        monitor.phase_finish("Building Engine")


def plan_of(path: Path, machine, profiles, **header):
    """The bytes of a plan as if built by others."""
    network = INetworkDefinition(1)
    assert OnnxParser(network, None).parse_from_file(str(path))
    told = {
        "version": machine.version,
        "capability": list(machine.device.compute_capability),
        "hardware": "NONE",
        "version_compatible": False,
        "profiles": profiles,
    }
    return fake.seal(told | header, network.data)
