"""GET /hetero: a page for people; GET /hetero/events: what it lives on."""

from typing import Any

from fastapi.responses import HTMLResponse, StreamingResponse

from hetero_sglang.sglang import present
from hetero_sglang.sglang.page.content import HEADERS, PATH, read
from hetero_sglang.sglang.page.feed import Feed


class Events(StreamingResponse):
    """A stream of server-sent events; its client counts as a watcher until it has gone."""

    def __init__(self, feed: Feed) -> None:
        super().__init__(feed.events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.feed = feed

    async def __call__(self, *args: Any) -> None:
        with self.feed.watching():
            await super().__call__(*args)


def add_page(app: Any, tokenizer_manager: Any) -> None:
    """The two routes."""

    async def ask() -> list[dict[str, Any]]:
        states = await tokenizer_manager.get_internal_state()
        return [{**state["hetero"], **state[present.KEY]} for state in states]

    feed, page = Feed(ask, lambda: bool(tokenizer_manager.gracefully_exit)), read("status.html")

    async def hetero_page() -> Any:
        return HTMLResponse(page, headers=HEADERS)

    async def hetero_events() -> Any:
        return Events(feed)

    app.add_api_route(PATH, hetero_page, methods=["GET"], include_in_schema=False)
    app.add_api_route(f"{PATH}/events", hetero_events, methods=["GET"], include_in_schema=False)
