"""Draws the poses on one frame and encodes it as JPEG."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.errors import OutputError
from pipeline.frames import Frame
from pipeline.outputs.overlay import Canvas, OverlayConfig, draw, draw_notice
from xpose_client.messages import PoseMessage, SkeletonMessage

_BLANK_HW = (360, 640)


def jpeg_of(
    frame: Frame,
    message: PoseMessage,
    skeletons: SkeletonMessage,
    *,
    overlay: OverlayConfig | None = None,
    notice: str = "",
    longest_side: int = 1920,
    quality: int = 85,
) -> bytes:
    """Draw a message on its frame and encode it.

    Args:
        overlay: settings of the drawing; None draws nothing.
        notice: text on the darkened picture, such as the state of a source that is not live.
        longest_side: longest side of the picture in px; larger frames are scaled down.
        quality: quality of the JPEG, 1 to 100.
    Raises:
        OutputError: the frame has no picture, or cannot be encoded.
    """
    rgb_HW3 = frame.rgb_HW3
    if rgb_HW3 is None:
        raise OutputError(f"{frame.source}: frame {frame.index} has no picture ({frame.error}); try the next one")
    zoom = min(1.0, longest_side / max(rgb_HW3.shape[:2]))
    size = max(1, round(frame.width * zoom)), max(1, round(frame.height * zoom))
    canvas_HW3: Canvas = rgb_HW3
    if zoom != 1:
        canvas_HW3 = np.asarray(cv2.resize(rgb_HW3, size, interpolation=cv2.INTER_AREA), np.uint8)
    elif overlay is not None or notice:
        canvas_HW3 = rgb_HW3.copy()
    if overlay is not None:
        draw(canvas_HW3, message, skeletons, overlay, zoom)
    if notice:
        draw_notice(canvas_HW3, notice)
    jpeg = _encode(canvas_HW3, quality)
    if jpeg is None:
        raise OutputError(f"{frame.source}: frame {frame.index} of {size[0]} x {size[1]} px cannot be encoded as JPEG")
    return jpeg


def blank_jpeg(notice: str, *, quality: int = 85) -> bytes:
    """Return a dark JPEG with a text, for a source that has no picture yet."""
    canvas_HW3 = np.zeros((*_BLANK_HW, 3), np.uint8)
    draw_notice(canvas_HW3, notice)
    jpeg = _encode(canvas_HW3, quality)
    assert jpeg is not None
    return jpeg


def _encode(canvas_HW3: Canvas, quality: int) -> bytes | None:
    bgr_HW3 = cv2.cvtColor(canvas_HW3, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr_HW3, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes() if done else None
