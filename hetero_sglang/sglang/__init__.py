"""The adapter: everything that knows SGLang's internals. What differs by version is in one folder for each."""
