"""Tracking and smoothing on open data, compared with other trackers in one run: `python -m benchmarks.tracking`."""
