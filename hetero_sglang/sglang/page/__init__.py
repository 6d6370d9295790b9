"""The status page: what a person sees of a server, and the stream that it lives on."""
