"""What was asked for at start, resolved once: flags, layouts of heads, caps."""
