"""The files of the page, and how they are served."""

from importlib.resources import files

PATH = "/hetero"
HEADERS = {  # the page asks nobody but its server
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


def read(name: str) -> str:
    """One of the files."""
    return (files(__package__) / name).read_text(encoding="utf-8")
