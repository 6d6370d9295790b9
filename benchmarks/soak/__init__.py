"""A soak: thousands of mixed requests on a real server in little memory, while its users leave and a saboteur is about.

Every request's end is counted, every answer looked through for numbers of another user's document, and what the server
holds is measured from beginning to end. `python -m benchmarks.soak` says which law was broken, if any.
"""
