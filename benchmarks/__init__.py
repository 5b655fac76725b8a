"""One script per claim; each writes rows with commit, machine and versions to `benchmarks/results/`."""
