"""The bench's models and prepared calls."""

import numpy as np

from bench import models
from forebay.v1 import inference_pb2, job_service_pb2


def test_the_same_files_come_out_every_time(model_files, tmp_path):
    """Seeds are fixed: two runs measure the same work."""
    again = models.make("small", tmp_path)
    assert again.model.read_bytes() == model_files.model.read_bytes()
    assert again.calls.read_bytes() == model_files.calls.read_bytes()


def test_expected_answers_are_the_models_own_and_all_different(model_files):
    """An answer that belongs to another request would be noticed."""
    run = models.session(model_files.model).run
    seen = set()
    calls = models.read_calls(model_files.calls)
    for request, answer in calls:
        tensor = inference_pb2.PredictRequest.FromString(request).inputs[0]
        row = np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
        expected = inference_pb2.PredictResponse.FromString(answer).outputs[0]
        np.testing.assert_array_equal(np.frombuffer(expected.data, "<f4"), run(None, {"x": row})[0].ravel())
        seen.add(expected.data)
    assert len(seen) == len(calls) == 64


def test_timed_calls_ask_for_timings(model_files):
    """They differ from the others in that alone."""
    plain, timed = (models.read_calls(path) for path in (model_files.calls, model_files.timed_calls))
    request = inference_pb2.PredictRequest.FromString(timed[3][0])
    assert request.report_timings
    request.report_timings = False
    assert request == inference_pb2.PredictRequest.FromString(plain[3][0])


def test_the_ghz_stream_is_messages_with_their_lengths(model_files):
    """ghz wants a varint before each message of a stream; no id is there twice, since all may be in flight."""
    data, ids = model_files.ghz_stream.read_bytes(), []
    while data:
        length = data[0] & 0x7F | data[1] << 7
        message = inference_pb2.StreamPredictRequest.FromString(data[2 : 2 + length])
        assert len(message.items) == models.stream_items("small") == models.STREAM_ITEMS
        ids += [item.id for item in message.items]
        data = data[2 + length :]
    assert ids == list(range(50 * models.STREAM_ITEMS))


def test_the_ghz_submission_has_no_key(model_files):
    """Each is a job of its own."""
    request = job_service_pb2.SubmitRequest.FromString(model_files.ghz_submit.read_bytes())
    assert (request.request.model, request.request_id) == ("small", "")
