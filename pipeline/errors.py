"""All errors that the program raises on purpose, in one drawing. Each package has a tree of its own.

    pipeline.errors      PipelineError
                         ├── ConfigError        a preset, an option or an endpoint that is not valid
                         ├── SourceError        a source that cannot be opened or ended with an error
                         ├── PublishError       a socket that cannot be bound or written
                         ├── MonitorError       a monitor that cannot listen, or a token file that cannot be used
                         └── OutputError        a pose or video file that cannot be written
    engines.errors       XPoseError
                         ├── CheckpointError    weights: absent, truncated, of another model
                         ├── PromptError        prompts, skeleton files, example images
                         │   └── CapacityError  more classes or keypoints than the engine has room for
                         ├── InputError         images that cannot be used, arguments out of range
                         ├── BackendError       a backend that this machine lacks or that failed
                         └── EngineCacheError   a compiled engine that does not belong to this model or machine
    trackers.errors      TrackerError
                         ├── TrackerConfigError a setting outside its range
                         └── TrackerInputError  arrays whose shapes disagree
    xpose_client.errors  ClientError
                         ├── EndpointError      an address that is not a ZeroMQ address
                         ├── KeyFileError       a key file that cannot be used
                         ├── ControlError       a request that the pipeline refused
                         ├── NoAnswerError      a request that was not answered in time
                         └── WireError          bytes that are not a message of this schema
                             └── SchemaError    a message of another schema

Each message is a sentence: what was got, what is allowed, what to do next. The command line prints it without a
traceback.
"""

from engines.errors import XPoseError
from trackers.errors import TrackerError
from xpose_client.errors import ClientError


class PipelineError(Exception):
    """Base of everything that `pipeline` raises on purpose."""


class ConfigError(PipelineError):
    """A preset, an option or an endpoint that is not valid."""


class SourceError(PipelineError):
    """A source that cannot be opened, or that ended with an error.

    `partial` is True if there were frames before the failure. They are good and are kept.
    """

    def __init__(self, message: str, *, partial: bool = False) -> None:
        super().__init__(message)
        self.partial = partial


class PublishError(PipelineError):
    """A socket that cannot be bound or written."""


class MonitorError(PipelineError):
    """A monitor that cannot listen, or a token file that cannot be used."""


class OutputError(PipelineError):
    """A pose or video file that cannot be written."""


ERRORS = (PipelineError, XPoseError, TrackerError, ClientError)
"""The roots of all trees."""
