"""See :mod:`benchmarks.network`."""

from benchmarks.network.command import main

main()
