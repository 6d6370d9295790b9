"""A real checkpoint on real texts: what `python -m benchmarks.real_text` is made of."""
