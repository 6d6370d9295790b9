"""The server's own port: what it serves, by which profile, and what may change meanwhile.

Routes are behind SGLang's key check (utils/auth.py), which asks for them by their endpoints."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from sglang.srt.managers.io_struct import SetInternalStateReq
from sglang.srt.utils.auth import AuthLevel, auth_level

from hetero_sglang.config.layout import over_ranks
from hetero_sglang.config.settings import resolve
from hetero_sglang.config.tuning import NAMES, Tuning
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import load_profile
from hetero_sglang.profile.outline import outline
from hetero_sglang.sglang import tune
from hetero_sglang.sglang.adapters import profile_files
from hetero_sglang.sglang.asked import AUTO, options_of


def add_routes(server_args: Any, tokenizer_manager: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE http_server._setup_and_run_http_server: /hetero/stats, /hetero/profile, /hetero/config, the page."""
    plain = getattr(server_args, "kv_policy", "full") == "full"
    if plain and not getattr(server_args, "hetero_early_exit", None):
        return
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from sglang.srt.entrypoints.http_server import app

    from hetero_sglang.sglang.page.routes import add_page

    async def hetero_stats() -> Any:
        states = await tokenizer_manager.get_internal_state()
        return [s.get("hetero") for s in states]

    app.add_api_route("/hetero/stats", hetero_stats, methods=["GET"])
    if plain:
        return
    profile, changing = served_profile(server_args), asyncio.Lock()

    async def hetero_profile() -> Any:
        return profile

    async def hetero_config() -> Any:
        states = await tokenizer_manager.get_internal_state()
        return states[0][tune.KEY]

    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def change_hetero_config(request: Request) -> Any:
        body = await request.body()
        async with changing:  # what is checked is what is changed
            try:
                before, change = await hetero_config(), parse(body)
                Tuning(**{name: before[name] for name in NAMES}).changed(change, before["fixed"])
            except HeteroError as error:
                return JSONResponse({"error": {"message": str(error)}}, 400)
            done = await tokenizer_manager.set_internal_state(SetInternalStateReq(server_args=tune.encode(change)))
            if not all(done):
                message = "a rank refused the change, so none has made it; its log says why."
                return JSONResponse({"error": {"message": message}}, 500)
            return await hetero_config()

    app.add_api_route("/hetero/profile", hetero_profile, methods=["GET"])
    app.add_api_route("/hetero/config", hetero_config, methods=["GET"])
    app.add_api_route("/hetero/config", change_hetero_config, methods=["POST"])
    add_page(app, tokenizer_manager)


def parse(body: bytes) -> Any:
    """The value of a JSON body. Raises HeteroError where it is none."""
    if not body.strip():
        raise HeteroError(f"the body is empty; give an object of one or more of {', '.join(NAMES)}.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise HeteroError(f"the body is no JSON ({kind}); give an object as in docs/control.md.") from None


def served_profile(server_args: Any) -> dict[str, Any]:
    """The heads' roles as they are served, and the profile file that they come from."""
    source = None if server_args.hetero_profile == AUTO else str(server_args.hetero_profile)
    about = load_profile(source).provenance if source else {}
    profile, options = options_of(server_args)
    settings = resolve(profile, size=server_args.tp_size, **options)
    adapters = zip(profile_files(server_args).items(), settings.adapters, strict=True)

    def shares(fractions: Sequence[Sequence[float]]) -> list[list[float]]:
        """By layer and KV head, the share of a long request's tokens that the head may keep on the device."""
        return over_ranks(settings.ranks, profile.num_kv_heads, fractions).round(4).tolist()

    return {
        "policy": server_args.kv_policy,
        "source": source,
        **outline(profile, about),
        "shares": shares([rank.fractions for rank in settings.ranks]),
        "adapters": {name: {"source": file, "shares": shares(each)} for (name, file), each in adapters},
    }
