"""`hetero-sglang top`: a server's status page in the terminal."""
