"""Benchmarks, run in a clone of the repository: README.md says which question each answers and how long it takes."""

# Files bench_GROUP.py and the rooms they are in, in the order in which they run: engines pin threads, so they are last.
GROUPS = {
    **dict.fromkeys(("update", "mix", "rows", "variants", "stream", "overhead", "growth"), "operators"),
    **dict.fromkeys(("load", "delta", "durability", "evaluate", "search"), "engine"),
}
