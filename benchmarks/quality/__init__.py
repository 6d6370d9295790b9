"""The quality benchmark: what every KV-cache policy still answers right, at equal bytes, inside a real server."""
