"""A server's response to one request, and what goes wrong with it in plain words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from hetero_sglang.errors import HeteroError

# A proxy between a benchmark and its server would be measured with it.
_opener = build_opener(ProxyHandler({}))


@contextmanager
def open_response(
    base_url: str, path: str, body: dict[str, Any] | None, timeout: float, wanted: str | None = None
) -> Iterator[Any]:
    """The response to a GET or, with a body, a POST of `path`, open for reading; `timeout` is in seconds.

    Raises HeteroError if no server answers, if it refuses `wanted` (default: the path), or if what it sends cannot be
    read as SGLang's: that goes for the whole `with` block.
    """
    url = base_url.rstrip("/") + path
    data = None if body is None else json.dumps(body).encode()
    try:
        request = Request(url, data, {"Content-Type": "application/json"})
        with _opener.open(request, timeout=timeout) as response:
            yield response
    except HTTPError as error:
        said = error.read().decode(errors="replace")[:300]
        raise HeteroError(f"The server at {base_url} refused {wanted or path} ({error.code}): {said}") from error
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise HeteroError(f"No answer from {base_url} ({reason}): start it or pass its URL.") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, HeteroError):
            raise
        raise HeteroError(f"{url} is not SGLang's ({error!r}): pass an SGLang server's URL.") from error
