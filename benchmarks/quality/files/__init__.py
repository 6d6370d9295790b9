"""RULER-style and LongBench-style data from local files, for real checkpoints."""
