"""A question about several documents: a branch reads each, and what the surest of them found is put together.

Nobody says which document has which entry. So every branch is asked for every name, and that one is believed whose
numbers had the highest log probability.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sglang as sgl

from benchmarks.recall import SPARE_TOKENS, Document, Language

from .outcome import Answer, Outcome
from .wording import BEGIN, ask, page

DOCUMENTS = 3
NAMES = 6


def run(backend: sgl.RuntimeEndpoint, language: Language, tokens: int, seed: int = 0) -> Outcome:
    """Ask for six entries of three documents of `tokens` tokens: where each stands, and all of them in one answer."""
    documents = [language.document(DOCUMENTS * seed + n, tokens, tokens // 48) for n in range(DOCUMENTS)]
    where = _pick(documents, seed)
    outcome = Outcome(f"multi-document: {len(where)} entries of {DOCUMENTS} documents of {tokens} tokens")
    state = answer.run(language, documents, list(where), outcome, backend=backend, temperature=0)
    said = dict(re.findall(r"(\w+) (\d+ \d+)", state["answer"]))
    for name, number in where.items():
        outcome.answers.append(Answer(f"document of {name}", str(state["where"][name]), str(number)))
        truth = " ".join(documents[number].entries[name])
        outcome.answers.append(Answer(f"numbers of {name}", said.get(name, "nothing"), truth))
    return outcome


@sgl.function
def answer(s: Any, language: Language, documents: Sequence[Document], names: Sequence[str], outcome: Outcome) -> None:
    """Leaves in `s` the document that each name was found in, `where`, and the `answer` out of what was found."""
    branches = s.fork(len(documents))  # of nothing, as documents have no beginning in common
    branches += [BEGIN + document.text for document in documents]
    for branch in branches:
        branch.sync()  # else the frontend may find nothing to read ahead in what it forks
    asked = [branch.fork(len(names)) for branch in branches]  # a document is read here, once for all its questions
    for forks in asked:
        forks += [
            ask(language, name) + f" {name}" + sgl.gen("found", max_tokens=2, return_logprob=True) for name in names
        ]
    for forks in asked:
        for fork in forks:
            meta = fork.get_meta_info("found")
            outcome.count(meta)
            fork["sureness"] = sureness(meta)
        forks.join()
    branches.join()  # found and sureness: [documents][names]
    surest = np.argmax(s["sureness"], axis=0).tolist()
    s["where"] = dict(zip(names, surest, strict=True))
    found = {name: s["found"][document][at] for at, (name, document) in enumerate(s["where"].items())}
    s += BEGIN + page(language, 0, found, 12) + ask(language, *names)
    s += sgl.gen("answer", max_tokens=4 * len(names) + SPARE_TOKENS, stop="\n")
    outcome.count(s.get_meta_info("answer"))


def sureness(meta: Mapping[str, Any]) -> float:
    """The log probability of what was generated."""
    return sum(logprob for logprob, *_ in meta["output_token_logprobs"])


def _pick(documents: Sequence[Document], seed: int) -> dict[str, int]:
    """Names and the one document that each stands in, as many of every document, in any order."""
    rng = np.random.default_rng(seed)
    where: dict[str, int] = {}
    for number, document in enumerate(documents):
        others = {name for other in documents if other is not document for name in other.entries}
        own = [name for name in document.entries if name not in others]
        where |= dict.fromkeys(rng.choice(own, NAMES // DOCUMENTS, replace=False).tolist(), number)
    return {name: where[name] for name in rng.permutation(list(where)).tolist()}
