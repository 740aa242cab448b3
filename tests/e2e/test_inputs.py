"""Callers send pixels and token ids in as few bytes as they need; what the model is given is exact."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from forebay.v1 import model_service_pb2, tensor_pb2
from forebay_client import Client, InvalidRequest
from forebay_server.config.tree import EngineConfig, InputConfig, ModelConfig
from forebay_server.engines.gpu import cuda
from forebay_server.engines.gpu.device import NoDevice

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGES = InputConfig(data_type="UINT8", layout="channels_last", scale=1 / 255, mean=MEAN, std=STD)


@pytest.fixture
def channels(onnx_models):
    """A model that gives back each channel's sum, and the image as it was given: FP32 [N, 3, 6, 5]."""
    nodes = [
        helper.make_node("Identity", ["image"], ["same"]),
        helper.make_node("ReduceSum", ["image", "axes"], ["sums"], keepdims=0),
    ]
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    return onnx_models.save(
        "channels",
        nodes,
        [("image", TensorProto.FLOAT, ["N", 3, 6, 5])],
        [("same", TensorProto.FLOAT, ["N", 3, 6, 5]), ("sums", TensorProto.FLOAT, ["N", 3])],
        [axes],
    )


def prepared(pixels):
    """What `IMAGES` promises."""
    exact = (pixels.astype("f8") * (1 / 255) - np.array(MEAN)) / np.array(STD)
    return exact.transpose(0, 3, 1, 2).astype("f4")


def test_images_are_prepared_as_part_of_the_batch(serve, channels):
    """UINT8 images, channels last, from many callers at once: each gets exactly what the formula says of its own."""
    server = serve(ModelConfig(path=str(channels), inputs={"image": IMAGES}))
    pixels = np.random.default_rng(1).integers(0, 256, (24, 6, 5, 3), "u1")
    with Client(server.addresses["public"]) as client:
        answers = list(client.stream("channels", ({"image": each[None]} for each in pixels)))
        whole = client.predict("channels", {"image": pixels})
    expected = prepared(pixels)
    assert whole["same"].tobytes() == expected.tobytes()
    assert [answer["same"].tobytes() for answer in answers] == [expected[n : n + 1].tobytes() for n in range(24)]
    assert np.allclose(whole["sums"], expected.sum((2, 3)), rtol=1e-5, atol=1e-5)


def test_the_served_specification_says_what_to_send(serve, call, channels):
    """Callers see UINT8 and their own order of dimensions; anything else is refused with a sentence."""
    server = serve(ModelConfig(path=str(channels), inputs={"image": IMAGES}))
    caller = call(server)
    (image,) = caller.models.GetModel(model_service_pb2.GetModelRequest(model="channels")).model.versions[0].inputs
    assert (image.name, image.data_type, list(image.shape)) == ("image", tensor_pb2.DATA_TYPE_UINT8, [-1, 6, 5, 3])

    with Client(server.addresses["public"]) as client:
        with pytest.raises(InvalidRequest, match="must be UINT8, not FP32"):
            client.predict("channels", {"image": np.ones((1, 6, 5, 3), "f4")})
        with pytest.raises(InvalidRequest, match="shape"):
            client.predict("channels", {"image": np.ones((1, 3, 6, 5), "u1")})


@pytest.mark.parametrize("sent", ["INT32", "UINT16", "UINT8"])
def test_token_ids_are_widened(serve, onnx_models, sent):
    """Ids of a few bytes reach a model that takes INT64, in several instances at once."""
    path = onnx_models.make_embedding_model(vocabulary=200)
    model = ModelConfig(
        path=str(path), inputs={"ids": InputConfig(data_type=sent)}, engine=EngineConfig(run="worker", instances=2)
    )
    server = serve(model)
    dtype = {"INT32": "i4", "UINT16": "u2", "UINT8": "u1"}[sent]
    ids = np.arange(198, dtype=dtype).reshape(66, 3)
    with Client(server.addresses["public"]) as client:
        answered = client.predict("embedding", {"ids": ids}).array
    assert answered.tolist() == [[[2.0 * n, 2.0 * n + 1] for n in row] for row in ids.tolist()]


def test_any_engine_is_given_what_it_takes(serve):
    """The python and synthetic engines know nothing of it."""
    config = InputConfig(data_type="UINT8", scale=0.5, mean=[1.0])
    server = serve(ModelConfig(path="synthetic:shape=2x3", name="echo", inputs={"x": config}))
    with Client(server.addresses["public"]) as client:
        answered = client.predict("echo", np.array([[[0, 1, 2], [3, 4, 255]]], "u1")).array
    assert answered.tolist() == [[[-1.0, -0.5, 0.0], [0.5, 1.0, 126.5]]]


def test_one_scheduler_feeds_the_instances_of_several_devices(serve):
    """Batches run on both make-believe devices at once; health and statistics know of all instances."""
    engine = EngineConfig(devices=["fake:0", "fake:1"], instances=2, run="worker")
    server = serve(ModelConfig(path="synthetic:base_ms=20", name="echo", engine=engine))
    with Client(server.addresses["public"]) as client:
        (version,) = client.model("echo").versions
        items = [np.full((1, 4), number, np.float32) for number in range(40)]
        answers = [answer.array[0, 0] for answer in client.stream("echo", items)]
        (told,) = client.statistics("echo")
    assert version.instances == 4
    assert answers == list(range(40))
    assert (told.instances, told.usable_instances) == (4, 4)


@pytest.mark.parametrize(
    ("devices", "sentence"),
    [
        (["cuda:0"], "engine.devices: the engine does not run on 'cuda:0', only on cpu, fake"),
        (
            ["fake:0", "fake:0"],
            "engine.devices: 'fake:0' is named twice; engine.instances says how many instances it has",
        ),
    ],
)
def test_a_place_that_is_none_is_one_sentence(serve, devices, sentence):
    """It is said at the start, before anything is loaded."""
    server = serve(ModelConfig(path="synthetic:", engine=EngineConfig(devices=devices)), ready=False)
    assert not server.wait_ready(30)
    assert server.start_failure == sentence


def test_a_gpu_that_is_not_there_is_one_sentence(serve, channels):
    """A model that is to run on a GPU does not run on the CPU in silence."""
    try:
        cuda.devices()
    except NoDevice as error:
        sentence = str(error)
    else:
        pytest.skip("there is a GPU here")
    server = serve(ModelConfig(path=str(channels), engine=EngineConfig(devices=["cuda"])), ready=False)
    assert not server.wait_ready(30)
    assert server.start_failure == sentence


def test_the_error_is_no_other(serve, channels):
    """Positive control: the same model without the setting takes floats, channels first."""
    server = serve(ModelConfig(path=str(channels)))
    with Client(server.addresses["public"]) as client:
        image = np.ones((1, 3, 6, 5), "f4")
        assert np.array_equal(client.predict("channels", {"image": image})["same"], image)
        with pytest.raises(InvalidRequest, match="must be FP32, not UINT8"):
            client.predict("channels", {"image": np.ones((1, 6, 5, 3), "u1")})
