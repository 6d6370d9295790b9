"""What SGLang 0.5.23 does in its own way (interface.py)."""
