"""The operations in torch, on any device; they may wait for it."""
