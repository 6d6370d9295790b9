"""The `hetero-sglang` command: each sub-command's module is imported only when it is called."""

import importlib
import os
import sys

from hetero_sglang.errors import HeteroError

# name -> module with `run(argv) -> exit code`, and what it does
COMMANDS = {
    "profile": ("hetero_sglang.calibration.commands", "find out what each KV head of a model does, and show it"),
    "exits": ("hetero_sglang.calibration.exits.commands", "train branches for early exit, and show them"),
    "size": ("hetero_sglang.sizing.command", "tell what fits a GPU's memory, and how much host memory it takes"),
    "patch": ("hetero_sglang.patching.command", "put the plugin into SGLang's source, where plugins are not loaded"),
    "top": ("hetero_sglang.top.command", "show what a server does, once a second"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs a sub-command. Exit codes: 0 done, 2 unusable input (one sentence on stderr), 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_usage())
            return 0 if arguments else 2
        if arguments[0] not in COMMANDS:
            raise HeteroError(f"there is no sub-command {arguments[0]!r}; choose one of {', '.join(COMMANDS)}.")
        module = importlib.import_module(COMMANDS[arguments[0]][0])
        return module.run(arguments[1:])
    except HeteroError as error:
        print(f"hetero-sglang: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("hetero-sglang: interrupted; nothing was written.", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "usage: hetero-sglang COMMAND ...\n\n" + "\n".join(lines) + "\n\nhetero-sglang COMMAND --help says more."


if __name__ == "__main__":
    sys.exit(main())
