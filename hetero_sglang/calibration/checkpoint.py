"""A local Hugging Face checkpoint, opened for calibration."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from hetero_sglang.calibration.packed.readable import check_readable, unreadable
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.fingerprint import mismatch, read_config
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.quantisation import quantisation

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "gemma", "granite", "mixtral", "qwen3_moe")
_WINDOWED = ("mistral", "mixtral", "phi3")  # a window in their configuration is one that is used
# Above this size a CPU run keeps the checkpoint's own dtype instead of float32.
_FLOAT32_BYTES = 2 << 30


@dataclass(frozen=True)
class Shape:
    """What a head profile must agree with."""

    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int


def read_shape(model_path: str | Path) -> Shape:
    """From config.json, nothing loaded. Raises HeteroError for an architecture that is not supported."""
    config = read_config(model_path)
    family = config.get("model_type")
    if family not in SUPPORTED:
        raise HeteroError(f"{model_path} is a {family!r} model; profiles can be made of {', '.join(SUPPORTED)} models.")
    sliding = config.get("use_sliding_window", family in _WINDOWED) and config.get("sliding_window")
    if sliding or "sliding_attention" in (config.get("layer_types") or ()):
        raise HeteroError(f"{model_path} has sliding-window layers; only models with full attention are supported.")
    try:
        query_heads = int(config["num_attention_heads"])
        return Shape(
            num_layers=int(config["num_hidden_layers"]),
            num_query_heads=query_heads,
            num_kv_heads=int(config.get("num_key_value_heads") or query_heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // query_heads),
            max_length=int(config["max_position_embeddings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise HeteroError(f"{model_path}/config.json lacks a usable {error}; download the checkpoint again.") from None


def check_profile(profile: HeadProfile, name: str, model_path: str | Path) -> None:
    """Raises HeteroError unless the profile in the file `name` is of this checkpoint: of its shape and weights."""
    shape = read_shape(model_path)
    profile.check_model(shape.num_layers, shape.num_query_heads, shape.num_kv_heads, shape.head_dim, name)
    if found := mismatch(profile.provenance, name, model_path):
        raise HeteroError(found)


@dataclass(frozen=True)
class Checkpoint:
    """Model in evaluation mode on its device, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device

    def encode(self, text: str) -> list[int]:
        """Token ids, none special."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def chat(self, messages: list[dict[str, str]]) -> str:
        """Messages as the model's own template has them; without one, or where it leaves some out, line by line."""
        pieces = self.templated(messages)
        if pieces is None:
            pieces = [self.tokenizer.bos_token or "", *(f"{each['content']}\n\n" for each in messages)]
        return "".join(pieces)

    def templated(self, messages: list[dict[str, str]]) -> list[str] | None:
        """Messages as the model's own template has them: what stands before each and its content in turn, and what
        stands behind the last; None without a template, and where it leaves some out."""
        if not self.tokenizer.chat_template:
            return None
        with suppress(TemplateError):
            whole = self.tokenizer.apply_chat_template(messages, tokenize=False)
            pieces, at = list[str](), 0
            for content in (each["content"].strip() for each in messages):
                if (start := whole.find(content, at)) < 0:
                    return None
                pieces += [whole[at:start], content]
                at = start + len(content)
            return [*pieces, whole[at:]]
        return None

    @property
    def start(self) -> list[int]:
        """What a prompt begins with: BOS where the tokenizer has one."""
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]


def open_checkpoint(model_path: str | Path, device: str = "auto") -> Checkpoint:
    """Loads weights and tokenizer from local files; weights that are quantised, as the numbers they stand for.

    Raises HeteroError when they are absent, cannot be read or do not fit."""
    about = quantisation(model_path)
    if about:
        check_readable(model_path, about)
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from hetero_sglang.calibration.placement import put

    target = _device(device)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # ours is the only one
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
        model = (_dequantised(model_path, about, target) if about else _as_it_is(model_path, target)).eval()
        put(model, target)
    except torch.OutOfMemoryError:
        raise HeteroError(f"the weights of {model_path} do not fit on {target}; choose another `--device`.") from None
    except HeteroError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HeteroError(f"{model_path} cannot be loaded: {reason.rstrip('.')}.") from None
    finally:
        if shown:
            logging.enable_progress_bar()
    return Checkpoint(model, tokenizer, target)


def _as_it_is(model_path: str | Path, target: torch.device) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    size = sum(path.stat().st_size for path in Path(model_path).glob("*.safetensors"))
    dtype = _dtype(size, target) or "auto"
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(model_path), local_files_only=True, dtype=dtype)
    return found


def _dequantised(model_path: str | Path, about: dict[str, Any], target: torch.device) -> PreTrainedModel:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    from hetero_sglang.calibration.packed.state import plain_state

    config = AutoConfig.from_pretrained(str(model_path), local_files_only=True)
    for name in ("quantization_config", "compression_config"):  # what would have Transformers quantise anew
        if hasattr(config, name):
            delattr(config, name)
    served = config.dtype if config.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    state = plain_state(model_path, about, target, served)
    dtype = _dtype(sum(tensor.nbytes for tensor in state.values()), target) or served
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    found: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    model, told = found
    if missing := sorted(told["missing_keys"]):  # they would be random numbers
        raise unreadable(model_path, f"of which {missing[0]!r} is not there")
    return model


def _dtype(size: int, target: torch.device) -> torch.dtype | None:
    """What weights of so many bytes are calculated in; None: what they are kept in."""
    import torch

    return torch.float32 if target.type == "cpu" and size <= _FLOAT32_BYTES else None


def tokenizer_hash(model_path: str | Path) -> str:
    """`sha256:...` over the files that decide how text becomes tokens."""
    digest = hashlib.sha256()
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"):
        path = Path(model_path) / name
        if path.is_file():
            digest.update(name.encode() + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise HeteroError(f"`--device {name}` cannot be used here ({reason}); choose auto, cpu or cuda.") from None
    return device
