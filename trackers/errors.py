"""The exception tree of this package.

TrackerError(Exception)
├── TrackerConfigError(TrackerError, ValueError)   a setting outside its range
└── TrackerInputError(TrackerError, ValueError)    arrays whose shapes disagree

Bad *values* (NaN, infinite or empty boxes, clocks that jump) are data, not errors: see trackers/README.md.
"""


class TrackerError(Exception):
    """Any error this package raises on purpose."""


class TrackerConfigError(TrackerError, ValueError):
    """A setting is outside its allowed range."""


class TrackerInputError(TrackerError, ValueError):
    """Input arrays have the wrong shape or disagree with each other."""
