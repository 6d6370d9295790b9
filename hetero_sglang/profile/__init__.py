"""What each KV head does: how to find out, how to keep it, and what to spend by it."""
