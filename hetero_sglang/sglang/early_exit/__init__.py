"""Early exit in SGLang's forward pass: tokens that a branch is sure of leave before the model's last layers."""

from hetero_sglang.sglang.early_exit.hooks import seams, start, stats, tell

__all__ = ["seams", "start", "stats", "tell"]
