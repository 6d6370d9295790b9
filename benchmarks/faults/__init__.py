"""Every fault of docs/faults.md, done on purpose to a real server under load, many times, and what became of its
promise. `python -m benchmarks.faults` counts; `running` are faults that a server survives, `starts` those that take a
start each."""
