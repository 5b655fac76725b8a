"""Pose messages as lines of JSON."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import OutputError
from pipeline.outputs.part import PartFile, guard
from xpose_client.messages import Message, PoseMessage, to_json_line


class PoseFile:
    """Pose messages as JSON lines, and skeleton messages beside them in `<stem>.skeletons.jsonl`.

    One line per frame, with the same keys as on the wire. The keypoint names of a line are in the skeleton line with
    the same source and prompt_id. `with` creates and closes both files.
    """

    def __init__(self, path: Path) -> None:
        self._poses = PartFile(path)
        self._skeletons = PartFile(path.with_name(f"{path.stem}.skeletons.jsonl"))

    def __enter__(self) -> Self:
        """Create both files.

        Raises:
            OutputError: they cannot be written.
        """
        self._pose_lines = self._poses.create()
        try:
            self._skeleton_lines = self._skeletons.create()
        except OutputError:
            self._poses.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._poses.close()
        self._skeletons.close()

    def write(self, message: Message) -> None:
        """Append one message.

        Raises:
            OutputError: the disk is full or gone.
        """
        part, file = self._skeletons.part, self._skeleton_lines
        if isinstance(message, PoseMessage):
            part, file = self._poses.part, self._pose_lines
        guard(part, lambda: file.write(to_json_line(message)))

    def commit(self) -> list[Path]:
        """Rename the complete files; return the path of the poses."""
        self._skeletons.commit()
        return [self._poses.commit()]

    def keep(self) -> list[Path]:
        """Leave the parts in place, and return the path of the poses' part."""
        return [self._poses.part]

    def discard(self) -> None:
        """Remove what was written."""
        self._poses.discard()
        self._skeletons.discard()
