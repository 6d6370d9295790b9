"""What SGLang 0.5.17 does in its own way (interface.py)."""
