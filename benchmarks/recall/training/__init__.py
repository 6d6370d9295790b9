"""Training the recall model from scratch; `python -m benchmarks.recall.train` is the command."""
