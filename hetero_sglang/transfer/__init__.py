"""How rows move: prefixes, write-back, the worker process."""
