"""Branchwise beside other ways to search, measured on one machine: `python -m benchmarks.peers`.

Every contestant gets the same problems, models, N, limits and engine flags, and starts with empty
caches. Invariant: what is timed is a contestant's own schedule and rule and nothing of the
measurement; grading, the minimum of PRM tokens and the tables come after.
"""
