"""Device and host stores of keys and values, and their sizes."""
