"""The tables of the pages under docs/results, written from the committed JSON of benchmarks/results."""
