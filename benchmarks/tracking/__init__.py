"""Tracking and smoothing measured on open data, beside the best peers, in one run: `python -m benchmarks.tracking`."""
