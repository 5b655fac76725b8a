"""The control socket: requests of other programs, carried out on a running pipeline.

    with ControlServer(config.control, keys) as control:
        control.serve(operations)

The server is a ROUTER socket on its own thread. This thread answers questions at once. Changes wait in a short queue
for a second thread, so that encoding a prompt does not delay questions. The pipeline's threads are not involved. A
client that dies, sends garbage or does not read its answers does not disturb others: answers that cannot be delivered
are dropped.
"""

from __future__ import annotations

import io
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import zmq
from PIL import Image

from pipeline.errors import ERRORS
from pipeline.keys import ServerKeys
from pipeline.outputs.endpoints import bind
from pipeline.outputs.gate import Gate
from pipeline.service.config import OPTION, ControlConfig
from pipeline.service.operations import Operations
from xpose_client.control_messages import (
    MOST_REQUEST_BYTES,
    AddRequest,
    Answer,
    ErrorAnswer,
    ExampleImage,
    PromptsRequest,
    RemoveRequest,
    Request,
    SnapshotRequest,
    StartRecordingRequest,
    StatusRequest,
    StopRecordingRequest,
    StopRequest,
    ThresholdsRequest,
    decode_request,
    encode,
)

if TYPE_CHECKING:
    from engines.skeletons import Skeleton
    from engines.visual_prompts import Example

_log = logging.getLogger(__name__)

_MOST_FRAMES = 8  # frames of a request with its envelope
_MOST_CHANGES = 16  # changes that wait to be carried out
_MOST_ANSWERS = 16  # answers that wait for one slow client
_MOST_EXAMPLES = 32
_MOST_PIXELS = 50_000_000  # of an example image: decoding it takes 150 MB
_LINGER_MS = 500
_STARTED_POLL_MS = 20
_LOG_EVERY_S = 10.0
_WAKE = "inproc://control"

Envelope = list[bytes]
"""The frames before a request. They are put before its answer, so that the answer reaches the client."""


class ControlServer:
    """A bound control socket; `with` opens and closes it.

    Args:
        config: where to listen.
        keys: keys of the clients that may connect; None to allow every client that can reach the address.
    """

    def __init__(self, config: ControlConfig, keys: ServerKeys | None = None) -> None:
        self.endpoint = config.endpoint
        self._operations: Operations | None = None
        self._keys = keys
        self._context = zmq.Context()
        self._changes: queue.Queue[tuple[Envelope, Request] | None] = queue.Queue(_MOST_CHANGES)
        self._bound, self._closing = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._garbage = 0
        self._logged_s = -_LOG_EVERY_S
        self._threads = [
            threading.Thread(target=self._listen, name="control", daemon=True),
            threading.Thread(target=self._change, name="control changes", daemon=True),
        ]

    def __enter__(self) -> Self:
        """Bind the socket.

        Raises:
            PublishError: the endpoint is in use, or is not an address of this machine.
        """
        for thread in self._threads:
            thread.start()
        self._bound.wait()
        if self._failure is not None:
            self._close()
            raise self._failure
        _log.info("control on %s", self.endpoint)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def serve(self, operations: Operations) -> None:
        """Begin to carry out requests on a pipeline that has started. Requests that came before have waited."""
        self._operations = operations

    def _close(self) -> None:
        """End both threads. If a change is being carried out, wait for it."""
        self._closing.set()
        self._changes.put(None)
        for thread in self._threads:
            thread.join()
        self._context.term()

    # ------------------------------------------------------------------ the thread of the socket

    def _listen(self) -> None:
        with self._context.socket(zmq.ROUTER) as router, self._context.socket(zmq.PULL) as answers:
            answers.bind(_WAKE)
            router.setsockopt(zmq.MAXMSGSIZE, MOST_REQUEST_BYTES)
            router.setsockopt(zmq.RCVHWM, _MOST_CHANGES)
            router.setsockopt(zmq.SNDHWM, _MOST_ANSWERS)
            router.setsockopt(zmq.LINGER, _LINGER_MS)
            gate = None if self._keys is None else Gate(router, self._keys, "control")
            try:
                bind(OPTION, router, self.endpoint)
                self.endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
                self._bound.set()
                self._serve(router, answers, gate)
            except Exception as error:  # passed to the thread that opened this server
                if self._bound.is_set():
                    _log.exception("control has failed; the pipeline goes on without it")
                self._failure = error
                self._bound.set()
            finally:
                router.close()
                if gate is not None:
                    gate.close()

    def _serve(self, router: zmq.Socket[bytes], answers: zmq.Socket[bytes], gate: Gate | None) -> None:
        poller = zmq.Poller()
        poller.register(answers, zmq.POLLIN)
        while self._operations is None and not self._closing.is_set():
            poller.poll(_STARTED_POLL_MS)
        poller.register(router, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if answers in ready:
                *envelope, answer = answers.recv_multipart()
                if not envelope:
                    return
                _send(router, envelope, answer)
            if router in ready:
                self._take(router, gate)

    def _take(self, router: zmq.Socket[bytes], gate: Gate | None) -> None:
        """Receive one request. Answer it, or pass it on as a change."""
        frames = router.recv_multipart(copy=False)
        if len(frames) > _MOST_FRAMES or (gate is not None and not gate.admits(frames[-1])):
            self._count_garbage("a message of too many parts, or of a client that is not allowed")
            return
        *envelope, body = (frame.bytes for frame in frames)
        try:
            request = decode_request(body)
        except ERRORS as error:
            self._count_garbage(str(error))
            _send(router, envelope, encode(ErrorAnswer(str(error))))
            return
        if isinstance(request, StatusRequest | SnapshotRequest):
            _send(router, envelope, encode(self._carry_out(request)))
            return
        try:
            self._changes.put_nowait((envelope, request))
        except queue.Full:
            sentence = f"{_MOST_CHANGES} changes wait to be carried out already; try again in a moment"
            _send(router, envelope, encode(ErrorAnswer(sentence)))

    def _count_garbage(self, what: str) -> None:
        self._garbage += 1
        if time.monotonic() - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = time.monotonic()
            _log.warning("control: %s (%d such messages so far)", what[:200], self._garbage)

    # ------------------------------------------------------------------ the thread of changes

    def _change(self) -> None:
        """Carry out changes, one after the other, until None comes; then wake the other thread so that it ends."""
        with self._context.socket(zmq.PUSH) as answers, suppress(zmq.Again):  # the other thread has failed
            answers.setsockopt(zmq.SNDTIMEO, _LINGER_MS)
            answers.setsockopt(zmq.LINGER, _LINGER_MS)
            answers.connect(_WAKE)
            while (change := self._changes.get()) is not None:
                envelope, request = change
                answers.send_multipart([*envelope, encode(self._carry_out(request))])
            answers.send(b"")

    def _carry_out(self, request: Request) -> Answer:
        """Carry out a request and return its answer; an error is returned as an answer, too."""
        assert self._operations is not None
        try:
            return _HANDLERS[type(request)](self._operations, request)
        except ERRORS as error:
            return ErrorAnswer(str(error))
        except Exception as error:  # a defect here must not end the pipeline
            _log.exception("control: %s failed", type(request).__name__)
            return ErrorAnswer(f"the request failed inside the pipeline ({type(error).__name__}); its log says more")


def _send(router: zmq.Socket[bytes], envelope: Envelope, answer: bytes) -> None:
    """Send an answer. If the client does not take it, it is dropped."""
    try:
        router.send_multipart([*envelope, answer], zmq.DONTWAIT)
    except zmq.ZMQError as error:
        _log.debug("control: an answer was dropped (%s)", error)


def _set_prompts(operations: Operations, request: PromptsRequest) -> Answer:
    from engines.errors import PromptError

    if len(request.examples) > _MOST_EXAMPLES:
        raise PromptError(f"{len(request.examples)} example images were sent, allowed are {_MOST_EXAMPLES}; send fewer")
    examples = [_example(sent) for sent in request.examples]
    return operations.set_prompts(
        request.prompt, request.keypoints, examples, request.prompt_from, _lists(request.lists)
    )


def _example(sent: ExampleImage) -> Example:
    """Decode an example image. Its size is checked first, because a small file can hold a huge picture."""
    from engines.errors import PromptError
    from engines.visual_prompts import read_example

    try:
        with Image.open(io.BytesIO(sent.image)) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PromptError(f"{sent.image_name} is not an image that can be decoded, or is far too large") from error
    if width * height > _MOST_PIXELS:
        raise PromptError(
            f"{sent.image_name} has {width} x {height} px, allowed are {_MOST_PIXELS // 1_000_000} megapixels; send a "
            "smaller picture"
        )
    return read_example(sent.image, sent.annotation, sent.image_name, sent.annotation_name)


def _lists(sent: Mapping[str, bytes]) -> dict[str, Skeleton]:
    from engines.skeletons import read_skeleton

    return {name: read_skeleton(content, name) for name, content in sent.items()}


_HANDLERS: dict[type, Callable[[Operations, Any], Answer]] = {
    StatusRequest: lambda operations, request: operations.status(),
    PromptsRequest: _set_prompts,
    AddRequest: lambda operations, request: operations.add_source(request.address, request.name),
    RemoveRequest: lambda operations, request: operations.remove_source(request.source),
    ThresholdsRequest: lambda operations, request: operations.set_thresholds(
        request.score, request.doubtful, request.nms_iou
    ),
    SnapshotRequest: lambda operations, request: operations.snapshot(request.source),
    StartRecordingRequest: lambda operations, request: operations.start_recording(request.name),
    StopRecordingRequest: lambda operations, request: operations.stop_recording(),
    StopRequest: lambda operations, request: operations.stop(),
}
