"""`python -m benchmarks.multiturn`."""

from benchmarks.multiturn.command import main

if __name__ == "__main__":
    main()
