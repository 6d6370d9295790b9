"""LoRA adapters: who they are to the cache, and the head profiles that are theirs.

SGLang adds an adapter's id to a request's radix key, so that no two adapters, nor one and the model, share a prefix;
what we look up by tokens (parked sets) we look up by that key too."""

from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Policy
from hetero_sglang.profile.ablation import ABLATIONS
from hetero_sglang.profile.adapter import with_index_shares_of, with_shares_of
from hetero_sglang.profile.files import load_profile
from hetero_sglang.profile.head_profile import HeadProfile

FLAG = "--hetero-lora-profile"
Shape = tuple[int, int, int, int]
OF_NONE = "/"  # ends the radix key of a request without adapter: no adapter's id has it


def profile_files(args: Any) -> dict[str, str]:
    """Head profiles by adapter, as the flag names them. Raises HeteroError for what is no NAME=FILE, or named twice."""
    found: dict[str, str] = {}
    flag = args.hetero_lora_profile or []
    for given in [flag] if isinstance(flag, str) else flag:
        name, _, file = given.partition("=")
        if not name or not file or name in found:
            wrong = "names an adapter again" if name and file else "is not NAME=FILE"
            raise HeteroError(f"{FLAG} {given} {wrong}; give each adapter's name once, with its profile's file.")
        found[name] = file
    return found


def check_names(args: Any) -> None:
    """Raises HeteroError for a profile of an adapter that the server does not start with."""
    known = [] if args.enable_lora is False else names(args.lora_paths or ())
    for name in profile_files(args):
        if name not in known:
            named = f"these are {', '.join(known)}" if known else "there are none"
            raise HeteroError(f"{FLAG} {name}: no adapter of that name is in --lora-paths ({named}); name one of them.")


def names(lora_paths: Any) -> list[str]:
    """Adapters by name, in any form that `--lora-paths` has until SGLang settles on one."""
    found = []
    for each in lora_paths:  # of a dictionary, its keys
        if isinstance(each, str):
            found.append(each.partition("=")[0])
        else:
            found.append(each["lora_name"] if isinstance(each, dict) else each.lora_name)
    return found


def adapter_profiles(args: Any, policy: Policy, model: HeadProfile, shape: Shape) -> dict[str, HeadProfile]:
    """The model's heads with each adapter's shares of rows, by these's names in the flag's order; `shape`: as of
    `check_model`. Raises HeteroError naming the file that does not fit."""
    made = {}
    for name, file in profile_files(args).items():
        own = load_profile(file)
        own.check_model(*shape, name=file)
        try:
            made[name] = (with_shares_of if policy.roles else with_index_shares_of)(own, model)
        except HeteroError as error:
            raise HeteroError(f"{FLAG} {name}={file}: {error}") from None
    return {name: ABLATIONS[args.hetero_ablation](each) for name, each in made.items()}


def check_request(request: Any, scheduler: Any) -> None:
    """Make the radix key of a request without adapter none that an adapter's could be: a client's own part of it may
    end like one's id. Raises HeteroError for an adapter that is not loaded, which would end the process."""
    if not scheduler.enable_lora:
        return
    if request.lora_id is None:
        request.extra_key = f"{request.extra_key}{OF_NONE}" if request.extra_key else None
    elif request.lora_id not in scheduler.tp_worker.model_runner.lora_manager.loras:
        raise HeteroError("the request's adapter is not loaded any more; load it again, or ask for another.")
