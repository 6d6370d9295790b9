"""What is found out about a model before it is served, from its own queries and keys."""
