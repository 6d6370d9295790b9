"""What a tokenized request may hold, so that no value of it ends the process that runs it.

SGLang checks a request's fields where it expects mistakes. What it does not check fails while a message is decoded or
a batch runs, and the process of everybody's requests goes down with it."""

import functools
import itertools
import re
import traceback
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from sglang.srt.managers.embed_types import PositionalEmbeds
from sglang.srt.managers.io_struct import PickleWrapper, SessionParams, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from hetero_sglang.errors import HeteroError

INT32, FLOAT32, TINY = 2**31 - 1, float(np.finfo(np.float32).max), 1e-100
DEPTH = 100  # of brackets in a schema: compiling takes 0.5 s and grows with its cube, then takes all memory
LOGIT = 1e6  # no model's logits come near it

GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")

# field, whether a request's value is fine for a model's configuration, and what would be
Rule = tuple[str, Callable[[Any, Any], bool], str]
RULES: tuple[Rule, ...] = (
    # SGLang takes an empty prompt's first token from whatever request runs beside it
    ("input_ids", lambda r, m: r.input_ids or r.input_embeds or r.session_params, "at least one token"),
    ("input_ids", lambda r, m: ids_within(r.input_ids, m.vocab_size), "token ids from 0 to {last}"),
    ("input_embeds", lambda r, m: all(len(row) == m.hidden_size for row in r.input_embeds or ()), "rows of {hidden}"),
    ("positional_embed_overrides", lambda r, m: embeds_within(r, m.hidden_size), "a row of {hidden} for a position"),
    ("top_logprobs_num", lambda r, m: r.top_logprobs_num <= m.vocab_size, "a number from 0 to {vocab}"),
    ("logprob_start_len", lambda r, m: r.logprob_start_len >= -1, "-1 or a position in the prompt"),
)  # fmt: skip
SAMPLING: tuple[Rule, ...] = (
    ("top_k", lambda s, m: s.top_k <= INT32, "-1, or a number from 1 to {int32}"),
    ("temperature", lambda s, m: 0 < s.temperature <= FLOAT32, "a number from 0 to {float32:g}"),
    ("repetition_penalty", lambda s, m: LOGIT * magnified(s) <= FLOAT32, "a number nearer to 1 at this temperature"),
    *((name, lambda s, m, name=name: speakable(getattr(s, name)), "it without the character NUL") for name in GRAMMARS),
    ("json_schema", lambda s, m: depth(s.json_schema) <= DEPTH, "a schema of at most {depth} nested brackets"),
    ("structural_tag", lambda s, m: depth(s.structural_tag) <= DEPTH, "a tag of at most {depth} nested brackets"),
    ("beam_width", lambda s, m: getattr(s, "beam_width", None) in (None, 1), "1, as beams would share rows"),
    ("logit_bias", lambda s, m: bias_within(s), "biases that leave logits finite at this temperature"),
)  # fmt: skip


def check(request: TokenizedGenerateReqInput, model: Any) -> None:
    """Raises HeteroError naming the first field that a model of this configuration could not be asked with.

    What SGLang does not read for this request alone is taken out: beside others in a batch it would be read."""
    sampling = request.sampling_params
    for part in (request, sampling, request.session_params):
        if part is not None:
            check_types(part)
    if sampling.stop_token_ids:
        sampling.stop_token_ids = {token for token in sampling.stop_token_ids if 0 <= token < model.vocab_size} or None
    if not request.return_logprob:
        request.top_logprobs_num, request.logprob_start_len, request.token_ids_logprob = 0, -1, None
    request.top_logprobs_num = max(0, request.top_logprobs_num)  # SGLang's own reading of a negative number
    for part, rules in ((request, RULES), (sampling, SAMPLING)):
        for name, fine, wanted in rules:
            if not fine(part, model):
                vocab, hidden = model.vocab_size, model.hidden_size
                words = wanted.format(
                    vocab=vocab, last=vocab - 1, hidden=hidden, int32=INT32, float32=FLOAT32, depth=DEPTH
                )
                raise HeteroError(f"{name} {shown(getattr(part, name))} cannot be served: give {words}.")


def check_types(part: msgspec.Struct) -> None:
    """Raises HeteroError for a field that the receiving process could not decode: its types are the declared ones."""
    for name, kind in field_types(type(part)).items():
        value = getattr(part, name)
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            why = str(error).lower().replace("`", "")
            raise HeteroError(f"{name} {shown(value)} is of a wrong type ({why}); send what is expected.") from None


@functools.cache
def field_types(struct: type) -> dict[str, Any]:
    """Declared types by field, without those that travel pickled and the token ids, an array by now."""
    hints = typing.get_type_hints(struct)
    names = [field.name for field in msgspec.structs.fields(struct)]
    parts = (SamplingParams, SessionParams)
    return {
        name: hints[name]
        for name in names
        if name != "input_ids"
        and PickleWrapper not in typing.get_args(hints[name])
        and not any(part is hints[name] or part in typing.get_args(hints[name]) for part in parts)
    }


def ids_within(ids: Any, vocab: int) -> bool:
    """Whether the array of token ids [n] is within the vocabulary; None where a prompt comes as embeddings."""
    if not ids:
        return True
    values = np.frombuffer(ids, dtype=np.int64)
    return int(values.min()) >= 0 and int(values.max()) < vocab


def embeds_within(request: TokenizedGenerateReqInput, hidden: int) -> bool:
    """Whether rows that replace a prompt's embeddings have its width, and their places in it."""
    given: PositionalEmbeds | None = request.positional_embed_overrides
    if given is None:
        return True
    length = len(request.input_ids or ())
    return given.embeds.shape[1:] == (hidden,) and all(0 <= at < length for at in given.positions)


def magnified(sampling: SamplingParams) -> float:
    """The most that penalty and temperature together can make of a logit of 1."""
    penalty, temperature = max(sampling.repetition_penalty, TINY), max(sampling.temperature, TINY)
    return max(penalty, 1 / penalty) / min(temperature, 1.0)


def bias_within(sampling: SamplingParams) -> bool:
    """Whether logits stay finite under the biases: an infinite one makes every probability NaN."""
    biases = (sampling.logit_bias or {}).values()
    return all(abs(bias) * magnified(sampling) < FLOAT32 / 4 for bias in biases)


def depth(text: str | None) -> int:
    """The most brackets that are open at once in a JSON text; those within strings count too."""
    return max(itertools.accumulate((c in "[{") - (c in "]}") for c in re.findall(r"[][{}]", text or "")), default=0)


def speakable(text: str | None) -> bool:
    """Whether a grammar holds no NUL, plain or as JSON writes it: at a pattern's start xgrammar crashes on one."""
    return text is None or not ("\0" in text or "\\u0000" in text)


def shown(value: Any) -> str:
    """A value in a sentence that is logged, too: of texts and lists, which may be a prompt's, the size alone."""
    if value is None or isinstance(value, bool | int | float):
        text = repr(value)
        return text if len(text) <= 30 else f"{text[:27]}..."
    if isinstance(value, str | bytes):
        return f"of {len(value)} characters"
    return f"of {len(value)} entries" if hasattr(value, "__len__") else f"of type {type(value).__name__}"


def place(error: Exception) -> str:
    """What kind of error it is and where it came up, for the log: its own words may be a request's."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.name}, {frame.filename}:{frame.lineno}"
