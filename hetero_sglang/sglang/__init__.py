"""The adapter: everything that knows SGLang 0.5.17's internals. The next SGLang version is this folder's work."""
