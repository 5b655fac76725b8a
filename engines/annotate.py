"""Make the annotation file of an example image: by clicking, or from a COCO keypoint file.

    python -m engines.annotate click mug.jpg mug.json --name mug --keypoints "rim,handle"
    python -m engines.annotate click dog.jpg dog.json --name dog
    python -m engines.annotate from-coco person_keypoints_val2017.json 000000000785.jpg me.json

Shapes: K keypoints.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from engines.capacity import MAX_KEYPOINTS
from engines.coco import CocoAnnotation, CocoCategory, CocoImage, CocoObject
from engines.errors import PromptError, XPoseError
from engines.prompts import parse_prompt
from engines.skeletons import Skeleton
from engines.visual_prompts import Example, load_example, read_rgb

WINDOW_PX = 1000
"""Longer side of the picture on screen."""

_KEY_ENTER, _KEY_ESCAPE, _KEYS_UNDO = 13, 27, (8, 127)
_MARK_RGB, _BOX_RGB = (60, 230, 60), (250, 170, 40)


def write_annotation(example: Example, image_name: str, path: Path) -> None:
    """Write an example's box and keypoints in COCO's layout. A failure leaves no partial file.

    Raises:
        PromptError: the file cannot be written.
    """
    x0, y0, x1, y1 = example.box_xyxy
    keypoints = [float(number) for number in example.keypoints_K3.reshape(-1)]
    edges = [(a + 1, b + 1) for a, b in example.skeleton.edges]
    content = CocoObject(
        CocoImage(1, image_name),
        CocoAnnotation(1, 1, (x0, y0, x1 - x0, y1 - y0), keypoints, 1),
        CocoCategory(1, example.name, list(example.skeleton.keypoints), edges),
    )
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode())
        partial.replace(path)
    except OSError as error:
        raise PromptError(f"cannot write {path}: {error.strerror}") from error


@dataclass
class Marking:
    """What has been clicked so far: two corners of the box, then a mark or a skip for each keypoint in turn."""

    name: str
    skeleton: Skeleton
    rgb_HW3: NDArray[np.uint8]
    clicks: list[tuple[float, float, int]] = field(default_factory=list)  # x, y in the image; 2 marked, 0 skipped

    @property
    def complete(self) -> bool:
        """Whether every keypoint has been marked or skipped."""
        return len(self.clicks) == 2 + len(self.skeleton.keypoints)

    @property
    def hint(self) -> str:
        """What to do next."""
        done = len(self.clicks)
        if done < 2:
            return f"click {('one', 'the opposite')[done]} corner of the box around the {self.name}"
        if self.complete:
            return "Enter: save   Backspace: undo   Esc: cancel"
        return f"{self.skeleton.keypoints[done - 2]}: click it, or press s if it is not to be seen (Backspace: undo)"

    def click(self, x: float, y: float) -> None:
        """Place the next corner or keypoint."""
        if not self.complete:
            self.clicks.append((x, y, 2))

    def skip(self) -> None:
        """Say that the next keypoint is out of sight; the box cannot be skipped."""
        if len(self.clicks) >= 2 and not self.complete:
            self.clicks.append((0.0, 0.0, 0))

    def undo(self) -> None:
        """Take back the last click or skip."""
        if self.clicks:
            self.clicks.pop()

    def example(self) -> Example:
        """Return the finished example; raises PromptError where it has no area or nothing visible."""
        (ax, ay, _), (bx, by, _) = self.clicks[:2]
        box = (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
        keypoints_K3 = np.array(self.clicks[2:], dtype=np.float32)
        return Example(self.name, self.skeleton, self.rgb_HW3, box, keypoints_K3)

    def picture(self, scale: float) -> NDArray[np.uint8]:
        """Draw the state as BGR for the screen."""
        size = max(round(self.rgb_HW3.shape[1] * scale), 1), max(round(self.rgb_HW3.shape[0] * scale), 1)
        shown = cv2.resize(self.rgb_HW3, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        places = [(round(x * scale), round(y * scale)) for x, y, _ in self.clicks]
        if len(places) >= 2:
            cv2.rectangle(shown, places[0], places[1], _BOX_RGB, 2)
        for place, (_, _, visible) in zip(places, self.clicks, strict=True):
            if visible:
                cv2.circle(shown, place, 4, _MARK_RGB, -1)
        return np.ascontiguousarray(shown[..., ::-1])


def mark_by_clicking(marking: Marking) -> Example | None:
    """Show a window until the marking is saved (Enter), or cancelled (Escape, or the window is closed): None.

    Raises:
        PromptError: there is no display, or what was saved is no example.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise PromptError(
            "clicking needs a display, and DISPLAY is not set; use `from-coco`, or write the file by hand"
        )
    scale = WINDOW_PX / max(marking.rgb_HW3.shape[:2])
    window = f"annotate {marking.name}"

    def on_mouse(event: int, x: int, y: int, flags: int, data: object) -> None:
        if event == cv2.EVENT_LBUTTONDOWN:
            marking.click((x + 0.5) / scale, (y + 0.5) / scale)

    cv2.namedWindow(window, cv2.WINDOW_AUTOSIZE)
    try:
        cv2.setMouseCallback(window, on_mouse)
        while cv2.getWindowProperty(window, cv2.WND_PROP_VISIBLE) >= 1:
            cv2.imshow(window, marking.picture(scale))
            cv2.setWindowTitle(window, marking.hint)
            key = cv2.waitKey(30) & 0xFF
            if key == _KEY_ESCAPE:
                return None
            if key == _KEY_ENTER and marking.complete:
                return marking.example()
            if key == ord("s"):
                marking.skip()
            elif key in _KEYS_UNDO:
                marking.undo()
        return None
    finally:
        cv2.destroyAllWindows()


app = typer.Typer(help="Make the annotation file of an example image.", no_args_is_help=True)


@app.command("click")
def click_command(
    image: Annotated[Path, typer.Argument(help="the example image")],
    out: Annotated[Path, typer.Argument(help="the annotation file to write")],
    name: Annotated[str, typer.Option(help="class name; name@LIST chooses a keypoint list")],
    keypoints: Annotated[str | None, typer.Option(help="keypoint names between commas")] = None,
) -> None:
    """Mark a box and keypoints with the mouse."""
    (prompt,) = parse_prompt(name, keypoints, max_classes=1, max_keypoints=MAX_KEYPOINTS)
    example = mark_by_clicking(Marking(prompt.name, prompt.skeleton, read_rgb(image)))
    if example is None:
        typer.echo("cancelled; nothing was written")
        raise typer.Exit(1)
    write_annotation(example, image.name, out)
    typer.echo(f"wrote {out}")


@app.command("from-coco")
def from_coco_command(
    coco: Annotated[Path, typer.Argument(help="a COCO keypoint file")],
    image: Annotated[Path, typer.Argument(help="an image that it annotates")],
    out: Annotated[Path, typer.Argument(help="the annotation file to write")],
    annotation_id: Annotated[str | None, typer.Option(help="which object, where the image has several")] = None,
) -> None:
    """Copy one object of one image."""
    write_annotation(load_example(image, coco, annotation_id), image.name, out)
    typer.echo(f"wrote {out}")


def main() -> None:
    """Run the command; an expected error is printed as one line, with exit status 2."""
    try:
        app()
    except XPoseError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
