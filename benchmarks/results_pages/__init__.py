"""Writer of the tables in docs/results from the committed JSON of benchmarks/results."""
