"""Benchmarks: one script per claim. Each writes rows with commit, machine and versions to `benchmarks/results/`."""
