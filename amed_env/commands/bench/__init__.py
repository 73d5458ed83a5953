"""The commands of the benchmark: run a suite, validate, rank and draw its results."""
