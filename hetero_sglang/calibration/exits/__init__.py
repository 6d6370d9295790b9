"""`hetero-sglang exits`: branches for early exit, distilled from a model's own last layer."""
