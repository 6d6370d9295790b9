"""Entry point `sglang.srt.plugins`: flags in every process, the cache in scheduler processes that want it."""

from hetero_sglang.errors import ending_the_process


def register() -> None:
    """Called by SGLang in every process that loads plugins. A plugin that fails is only logged there, so
    what must not be survived ends the process here with one sentence."""
    with ending_the_process():
        _register()


def _register() -> None:
    from hetero_sglang.config import development
    from hetero_sglang.sglang.version import check_version

    check_version()
    development.check()
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.plugins.hook_registry import HookType

    from hetero_sglang.cpu import grammar, paged
    from hetero_sglang.sglang import port
    from hetero_sglang.sglang.args import HeteroServerArgs
    from hetero_sglang.sglang.bodies import watch
    from hetero_sglang.sglang.control import add_routes
    from hetero_sglang.sglang.hooks import enter_scheduler, install
    from hetero_sglang.sglang.page.door import hang_door

    install(
        [
            *paged.seams(),
            *grammar.seams(),
            ("sglang.srt.server_args.ServerArgs", HeteroServerArgs, HookType.REPLACE),
            ("sglang.srt.managers.scheduler.configure_scheduler_process", enter_scheduler, HookType.BEFORE),
            ("sglang.srt.entrypoints.http_server.launch_server", port.launching, HookType.BEFORE),
            ("sglang.srt.managers.tokenizer_manager.TokenizerManager.__init__", watch, HookType.AFTER),
            ("sglang.srt.entrypoints.http_server._setup_and_run_http_server", add_routes, HookType.BEFORE),
            ("sglang.srt.utils.auth.add_api_key_middleware", hang_door, HookType.AFTER),
        ]
    )
    Engine.server_args_class = HeteroServerArgs
