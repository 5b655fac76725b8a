"""What can go wrong in the pipeline, as one tree.

    PipelineError
    ├── ConfigError    a preset, an option or an endpoint that makes no sense
    ├── SourceError    a source that cannot be opened or broke off
    ├── PublishError   a socket that cannot be bound or written
    └── OutputError    a pose or video file that cannot be written

Each message is one sentence: what was got, what is allowed, what to do next.
The command line prints it as one line, without a traceback.
"""


class PipelineError(Exception):
    """Base of everything that the pipeline raises on purpose."""


class ConfigError(PipelineError):
    """A preset, an option or an endpoint that makes no sense."""


class SourceError(PipelineError):
    """A source that cannot be opened, or that broke off.

    `partial` is True where frames came out before (or beside) the failure: they are good and are kept.
    """

    def __init__(self, message: str, *, partial: bool = False) -> None:
        super().__init__(message)
        self.partial = partial


class PublishError(PipelineError):
    """A socket that cannot be bound or written."""


class OutputError(PipelineError):
    """A pose or video file that cannot be written."""
