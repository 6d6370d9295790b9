"""A load of conversations on a running server: who asks what and when, what came back, and how fast."""
