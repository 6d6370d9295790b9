"""Checkpoints with quantised weights, made on the spot, served by plain SGLang and by ours."""
