from benchmarks.specification.command import main

main()
