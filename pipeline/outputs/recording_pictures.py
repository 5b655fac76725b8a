"""Pictures and poses in Foxglove's schemas, and the encoder for pictures whose packets viewers cannot read.

Shape suffixes: H, W = height and width in pixels; 3 = red, green, blue.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from pipeline.recording import IMAGE_FORMATS
from xpose_client.messages import PoseMessage, SkeletonMessage, TrackMessage

if TYPE_CHECKING:
    from foxglove_schemas_protobuf.Color_pb2 import Color

_KEY_EVERY = 30  # frames between two key frames of an encoded source
_SMALLEST_SIDE = 16  # px; below it x264 refuses
_GOLDEN_ANGLE = 0.381966  # of a turn: neighbouring ids get colours that differ


class PictureEncoder:
    """Encodes pictures as H.264 without B-frames. Belongs to one thread.

    Args:
        crf: constant rate factor of x264.
    """

    def __init__(self, crf: int) -> None:
        self._crf = crf
        self._encoder: VideoCodecContext | None = None
        self._count = 0

    def encode(self, rgb_HW3: NDArray[np.uint8], *, key: bool) -> tuple[bytes, bool]:
        """Return the packet of a picture in Annex B, and whether it is a key frame.

        Args:
            key: make it a key frame. The first picture and each picture of a new size are key frames in any case.
        """
        padded_HW3 = _even(rgb_HW3)
        height, width = padded_HW3.shape[:2]
        if self._encoder is None or (self._encoder.width, self._encoder.height) != (width, height):
            self._encoder = self._opened(width, height)
            self._count = 0
        picture = av.VideoFrame.from_ndarray(padded_HW3, format="rgb24").reformat(format="yuv420p")
        picture.pts = self._count
        key = key or self._count % _KEY_EVERY == 0
        if key:
            picture.pict_type = av.video.frame.PictureType.I
        self._count += 1
        return b"".join(bytes(packet) for packet in self._encoder.encode(picture)), key

    def _opened(self, width: int, height: int) -> VideoCodecContext:
        encoder = av.CodecContext.create("libx264", "w")
        assert isinstance(encoder, VideoCodecContext)
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.time_base = Fraction(1, 30)
        encoder.thread_count = 1
        encoder.options = {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "crf": str(self._crf),
            "forced-idr": "1",
            "x264-params": "scenecut=0:keyint=infinite",
        }
        return encoder


def compressed_video(data: bytes, name: str, source: str, unix_ns: int) -> bytes:
    """Return a foxglove.CompressedVideo."""
    from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo

    message = CompressedVideo(frame_id=source, data=data, format=name)
    message.timestamp.FromNanoseconds(unix_ns)
    return bytes(message.SerializeToString())


def compressed_image(data: bytes, name: str, source: str, unix_ns: int) -> bytes:
    """Return a foxglove.CompressedImage."""
    from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage

    assert name in IMAGE_FORMATS
    message = CompressedImage(frame_id=source, data=data, format=name)
    message.timestamp.FromNanoseconds(unix_ns)
    return bytes(message.SerializeToString())


def pose_annotations(message: PoseMessage, skeleton: SkeletonMessage | None) -> bytes:
    """Return the boxes, keypoints, edges and names of a message's tracks as foxglove.ImageAnnotations."""
    from foxglove_schemas_protobuf.ImageAnnotations_pb2 import ImageAnnotations
    from foxglove_schemas_protobuf.PointsAnnotation_pb2 import PointsAnnotation

    result = ImageAnnotations()
    edges = {} if skeleton is None else {item.name: item.edges for item in skeleton.classes}

    def add(track: TrackMessage, kind: Any, points: Sequence[tuple[float, float]], thickness: float) -> None:
        if not points:
            return
        item = result.points.add(type=kind, thickness=thickness)
        item.timestamp.FromNanoseconds(message.capture_unix_ns)
        for x, y in points:
            item.points.add(x=x, y=y)
        item.outline_color.CopyFrom(_color(track.id))
        item.fill_color.CopyFrom(_color(track.id))

    for track in message.tracks:
        x0, y0, x1, y1 = track.box_xyxy
        known = {k: (x, y) for k, (x, y) in enumerate(track.keypoints) if x is not None and y is not None}
        lines = [known[end] for a, b in edges.get(track.class_name, ()) if a in known and b in known for end in (a, b)]
        add(track, PointsAnnotation.LINE_LOOP, ((x0, y0), (x1, y0), (x1, y1), (x0, y1)), 1.0)
        add(track, PointsAnnotation.LINE_LIST, lines, 2.0)
        add(track, PointsAnnotation.POINTS, list(known.values()), 4.0)
        text = result.texts.add(text=f"{track.class_name} {track.id}", font_size=12.0)
        text.timestamp.FromNanoseconds(message.capture_unix_ns)
        text.position.x, text.position.y = x0, y0
        text.text_color.CopyFrom(_color(track.id))
    return bytes(result.SerializeToString())


def _color(track_id: int) -> Color:
    from foxglove_schemas_protobuf.Color_pb2 import Color

    red, green, blue = colorsys.hsv_to_rgb(track_id * _GOLDEN_ANGLE % 1.0, 0.8, 1.0)
    return Color(r=red, g=green, b=blue, a=1.0)


def _even(rgb_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row and column until both sides are even and large enough for x264."""
    height, width = rgb_HW3.shape[:2]
    more_h = max(_SMALLEST_SIDE, height + height % 2) - height
    more_w = max(_SMALLEST_SIDE, width + width % 2) - width
    if not more_h and not more_w:
        return rgb_HW3
    return np.pad(rgb_HW3, ((0, more_h), (0, more_w), (0, 0)), mode="edge")
