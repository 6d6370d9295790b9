"""A two-tier, per-head KV cache policy for SGLang."""
