"""What can go wrong between pixels and poses, drawn in one place.

    XPoseError
    ├── CheckpointError   weights: absent, truncated, of another model
    ├── PromptError       prompts, skeleton files, example images
    │   └── CapacityError   more classes or keypoints than the engine has room for
    ├── InputError        images that cannot be used, arguments out of range
    ├── BackendError      a backend that this machine lacks or that failed
    └── EngineCacheError  a compiled engine that does not belong to this model or machine

Every message is one sentence or two: what was got, what is allowed, what to do next.
"""


def shortened(text: str, longest: int = 40) -> str:
    """Return `text` for an error message: its first `longest` characters and "…" where it is longer."""
    return text if len(text) <= longest else f"{text[:longest]}…"


def quoted(text: str) -> str:
    """Return `text` in quotation marks for an error message, shortened."""
    return repr(shortened(text))


class XPoseError(Exception):
    """Base of the failures that a user can act on."""


class CheckpointError(XPoseError, ValueError):
    """Weights are absent, unreadable, or belong to another model."""


class PromptError(XPoseError, ValueError):
    """A prompt, a skeleton file or an example image cannot be used."""


class CapacityError(PromptError):
    """More classes or keypoints than the engine has room for; `classes` and `keypoints` say how many are needed."""

    def __init__(self, message: str, classes: int, keypoints: int) -> None:
        super().__init__(message)
        self.classes = classes
        self.keypoints = keypoints


class InputError(XPoseError, ValueError):
    """An image or an argument is outside of what the engine takes."""


class BackendError(XPoseError, RuntimeError):
    """A backend is not available on this machine, or failed while running."""


class EngineCacheError(XPoseError, RuntimeError):
    """A compiled engine does not match its model, prompts capacity or machine."""
