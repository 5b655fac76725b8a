"""The annotated videos: one for each source."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

from pipeline.flow.metrics import NO_PICTURE
from pipeline.flow.publishing import Published
from pipeline.flow.queues import Queue
from pipeline.outputs.video import VideoConfig, VideoFile, check_suffix
from pipeline.sources import Source


class Draw:
    """The stage that draws each message on its frame and encodes it into the video of its source.

    This stage has a thread of its own, so that publishing never waits for an encoder.

    Args:
        path: file of the video. With several sources, or for a source that is added later, the name of the file is
            `<stem>.<source><suffix>`.
        frames: queue of the stage.

    Attributes:
        files: the video of each source, by name.

    Raises:
        OutputError: `path` does not have the suffix of a video file.
    """

    def __init__(self, path: Path, config: VideoConfig, frames: Queue[Published]) -> None:
        check_suffix(path)
        self.files: dict[str, VideoFile] = {}
        self._path = path
        self._config = config
        self._frames = frames

    def add(self, source: Source, *, alone: bool) -> None:
        """Make the video file of a source. `alone` leaves the source out of the file name."""
        named = self._path.with_stem(f"{self._path.stem}.{source.name.replace('/', '_')}")
        self.files[source.name] = VideoFile(self._path if alone else named, self._config, rate=lambda: source.fps)
        self._frames.lane(self._config.queue, source.name, drop_oldest=source.live)

    def __call__(self, frames: Queue[Published]) -> Generator[Published]:
        """Create the files, draw and encode every frame, finish the files. Yields the drawn frames."""
        with ExitStack() as opened:
            writing = {name: opened.enter_context(file) for name, file in list(self.files.items())}
            for published in frames:
                if published.frame.picture is None:
                    frames.drop(published, NO_PICTURE)
                    continue
                if published.source not in writing:  # added while running
                    writing[published.source] = opened.enter_context(self.files[published.source])
                writing[published.source].write(published.frame, published.message, published.skeleton)
                yield published
