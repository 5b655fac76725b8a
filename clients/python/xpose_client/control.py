"""Steer a running pipeline.

with Control("ipc:///run/xpose/control") as control:
    control.set_prompts("person,dog")
    control.add_source("rtsp://camera.local/stream", name="door")
    print(control.status().sources)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TypeVar

import zmq

from xpose_client.control_messages import (
    MOST_REQUEST_BYTES,
    AddedAnswer,
    AddRequest,
    ErrorAnswer,
    ExampleImage,
    PromptsAnswer,
    PromptsRequest,
    RecordingAnswer,
    RemovedAnswer,
    RemoveRequest,
    Request,
    SnapshotAnswer,
    SnapshotRequest,
    StartRecordingRequest,
    StatusAnswer,
    StatusRequest,
    StopAnswer,
    StopRecordingRequest,
    StopRequest,
    ThresholdsAnswer,
    ThresholdsRequest,
    decode_answer,
    encode,
)
from xpose_client.errors import ControlError, EndpointError, NoAnswerError, WireError
from xpose_client.keys import load_client_keys

_Answer = TypeVar("_Answer")

_LONGEST_RECONNECT_MS = 1000


class Control:
    """Sends requests to a pipeline that runs with `--control`. Belongs to one thread.

    Every method waits for the answer. If the pipeline refuses a request, the method raises, and nothing has changed.
    After a time-out it is unknown whether the request was carried out: ask for the status.

    Args:
        endpoint: the control socket's ZeroMQ address.
        keys: key file of this client (`NAME.key`), if the pipeline uses keys.
        timeout_s: longest wait for an answer.

    Raises:
        EndpointError: the endpoint is malformed.
        KeyFileError: the key file cannot be used.
    """

    def __init__(self, endpoint: str, *, keys: str | os.PathLike[str] | None = None, timeout_s: float = 10.0) -> None:
        own = None if keys is None else load_client_keys(keys)
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        self._socket.setsockopt(zmq.REQ_RELAXED, 1)  # a request may follow one that was not answered, …
        self._socket.setsockopt(zmq.REQ_CORRELATE, 1)  # … whose late answer is not taken for another one
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _LONGEST_RECONNECT_MS)
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        if own is not None:
            own.apply_to(self._socket)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(
                f"{endpoint}: is not a ZeroMQ address ({error.strerror}); give tcp://ADDRESS:PORT or ipc://FILE"
            ) from error

    def status(self) -> StatusAnswer:
        """Return how the pipeline is doing."""
        return self._ask(StatusRequest(), StatusAnswer)

    def set_prompts(
        self,
        prompt: str,
        keypoints: str | None = None,
        *,
        prompt_from: str = "example",
        examples: Sequence[ExampleImage] = (),
        lists: Mapping[str, bytes] | None = None,
    ) -> PromptsAnswer:
        """Look for something else in all sources, from the next inferred frame on; see `PromptsRequest`."""
        request = PromptsRequest(prompt, keypoints, prompt_from, list(examples), dict(lists or {}))
        return self._ask(request, PromptsAnswer)

    def add_source(self, address: str, name: str = "") -> AddedAnswer:
        """Add a source; see `AddRequest`."""
        return self._ask(AddRequest(address, name), AddedAnswer)

    def remove_source(self, source: str) -> RemovedAnswer:
        """Remove a source: its tracks and topics end."""
        return self._ask(RemoveRequest(source), RemovedAnswer)

    def set_thresholds(
        self, score: float | None = None, doubtful: float | None = None, nms_iou: float | None = None
    ) -> ThresholdsAnswer:
        """Change which detections count. A threshold that is None stays as it is. See `ThresholdsRequest`."""
        return self._ask(ThresholdsRequest(score, doubtful, nms_iou), ThresholdsAnswer)

    def snapshot(self, source: str) -> SnapshotAnswer:
        """Return the newest picture of a source with its poses drawn on it."""
        return self._ask(SnapshotRequest(source), SnapshotAnswer)

    def start_recording(self, name: str = "") -> RecordingAnswer:
        """Record all sources and messages; see `StartRecordingRequest`."""
        return self._ask(StartRecordingRequest(name), RecordingAnswer)

    def stop_recording(self) -> RecordingAnswer:
        """End the recording, and return how it went."""
        return self._ask(StopRecordingRequest(), RecordingAnswer)

    def stop(self) -> StopAnswer:
        """End the pipeline. Frames that were given to the engine before are still published."""
        return self._ask(StopRequest(), StopAnswer)

    def _ask(self, request: Request, kind: type[_Answer]) -> _Answer:
        """Send a request and return its answer.

        Raises:
            ControlError: the pipeline refused it.
            NoAnswerError: no answer came in time.
            WireError: the answer is of another version.
        """
        data = encode(request)
        if len(data) > MOST_REQUEST_BYTES:
            raise ControlError(
                f"the request has {len(data)} bytes, allowed are {MOST_REQUEST_BYTES}: give fewer or smaller images"
            )
        self._socket.send(data)
        if not self._socket.poll(round(self._timeout_s * 1000)):
            raise NoAnswerError(
                f"{self._endpoint}: no answer within {self._timeout_s:g} s; check that a pipeline runs with --control "
                "and this address, and that it allows this client's key if it uses keys"
            )
        answer = decode_answer(self._socket.recv())
        if isinstance(answer, ErrorAnswer):
            raise ControlError(answer.sentence)
        if not isinstance(answer, kind):
            raise WireError(
                f"expected {kind.__name__}, got {type(answer).__name__}: the pipeline is of another version"
            )
        return answer

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
