from benchmarks.detectors.measure import main

main()
