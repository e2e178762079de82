"""`python -m jobs` is `branchwise`."""

from jobs.cli import main

if __name__ == "__main__":
    main()
