from benchmarks.privacy_utility.command import main

if __name__ == "__main__":
    main()
