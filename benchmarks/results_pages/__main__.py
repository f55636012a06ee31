from benchmarks.results_pages.command import main

main()
