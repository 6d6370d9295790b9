"""Where SGLang's key check refuses a browser the page, the refusal is itself a page, which asks for the key.

A browser that opens an address sends no key; what the door gets is sent in a header by its script."""

from typing import Any

from hetero_sglang.sglang.page.content import HEADERS, PATH, read


def hang_door(result: None, app: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER auth.add_api_key_middleware: before the check, where there is a page behind it."""
    if any(getattr(route, "path", None) == PATH for route in app.router.routes):
        app.add_middleware(Door)


class Door:
    """ASGI; the status stays 401, and programs get SGLang's own answer."""

    def __init__(self, app: Any) -> None:
        self.app, self.page = app, read("door.html")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not from_a_browser(scope):
            return await self.app(scope, receive, send)
        from fastapi.responses import HTMLResponse

        refused = False

        async def answer(message: Any) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 401:
                refused = True
                await HTMLResponse(self.page, 401, HEADERS)(scope, receive, send)
            elif not refused:
                await send(message)

        await self.app(scope, receive, answer)


def from_a_browser(scope: Any) -> bool:
    """Whether a browser opens the page."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != PATH:
        return False
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])
