"""Entry point `sglang.srt.plugins`: flags in every process, the cache in scheduler processes that want it."""

from hetero_sglang.errors import HeteroError, ending_the_process


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
    try:
        from sglang.srt.entrypoints.engine import Engine
    except OSError as error:  # FlashInfer makes a folder when it is imported
        raise HeteroError(
            f"SGLang cannot be imported ({error}); set HOME, or FLASHINFER_WORKSPACE_BASE, to a folder that can be "
            "written."
        ) from None

    from hetero_sglang.sglang.args import HeteroServerArgs
    from hetero_sglang.sglang.hooks import install, process_seams

    install(process_seams())
    Engine.server_args_class = HeteroServerArgs
