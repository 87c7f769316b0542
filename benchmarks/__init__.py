"""One file per claim; each writes its result, with how it was measured, below `benchmarks/results`."""
