"""The exception tree of this package.

TrackerError(Exception)
├── TrackerConfigError(TrackerError, ValueError)   a setting outside its range
└── TrackerInputError(TrackerError, ValueError)    arrays whose shapes disagree

Bad values (NaN, infinite or empty boxes, clocks that jump) raise nothing; trackers/README.md says what happens.
"""


class TrackerError(Exception):
    """Base class of the errors of this package."""


class TrackerConfigError(TrackerError, ValueError):
    """A setting is outside its allowed range."""


class TrackerInputError(TrackerError, ValueError):
    """Input arrays have the wrong shape or disagree with each other."""
