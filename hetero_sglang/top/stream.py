"""The events of a server's status page, as a program reads them."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from hetero_sglang.errors import HeteroError

PATH = "/hetero/events"
PATIENCE = 30.0  # seconds that a server may say nothing: it sends at least a sign of life in five
FAULTS = (OSError, http.client.HTTPException)


def events(url: str, key: str | None) -> Iterator[dict[str, Any]]:
    """What the server says about once a second; ends when it does. Raises HeteroError where it will say nothing."""
    headers = {"Accept": "text/event-stream", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url + PATH, headers=headers), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        error.close()
        raise HeteroError(_refusal(url, key, error.code)) from None
    except FAULTS as error:
        why = getattr(error, "reason", None) or error
        raise HeteroError(
            f"no server answers at {url} ({why}); start one, or give its address: `hetero-sglang top URL`."
        ) from None
    except ValueError as error:  # as urllib and http.client say it
        raise HeteroError(
            f"{url!r} or the key cannot be sent ({error}); give an address like http://HOST:PORT."
        ) from None
    with reply:
        if reply.headers.get_content_type() != "text/event-stream":
            raise HeteroError(_foreign(url))
        try:
            for line in reply:
                if line.startswith(b"data: "):
                    yield _event(line.removeprefix(b"data: "))
        except ValueError:
            raise HeteroError(_foreign(url)) from None
        except FAULTS:
            return


def _event(line: bytes) -> dict[str, Any]:
    """ValueError where it is none of ours."""
    event = json.loads(line)
    if not isinstance(event, dict) or not event.keys() >= {"rates", "waiting", "ranks"} or not event["ranks"]:
        raise ValueError(line)
    return event


def _refusal(url: str, key: str | None, status: int) -> str:
    if status in (401, 403):
        what = "wants another key than this one" if key else "wants a key"
        return f"{url} {what}; give the server's --api-key with --api-key KEY."
    if status in (404, 405):
        return _foreign(url)
    return f"{url} answers with status {status}; its log says why."


def _foreign(url: str) -> str:
    return (
        f"{url} has no status page: it is another server, or one without a KV policy of this plugin; start it with "
        f"--kv-policy heterocache."
    )
