"""Draft tokens as SGLang describes them, and what is refused about them at start."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.drafts import CORPUS, build_corpus, check, check_trees, trees


def test_trees_are_read_from_masks_over_all_tokens_and_over_the_new_ones() -> None:
    g, lengths, each = torch.Generator().manual_seed(3), [5, 1, 9], 4
    wanted = torch.rand(3, each, each, generator=g) < 0.5
    whole = [
        torch.cat((torch.ones(each, n, dtype=torch.bool), tree), 1).flatten()
        for n, tree in zip(lengths, wanted, strict=True)
    ]
    assert torch.equal(trees(torch.cat(whole), lengths, each), wanted)
    assert torch.equal(trees(wanted.flatten().long(), lengths, each), wanted)
    assert trees(wanted.flatten(), [], each).shape == (0, each, each)


def arguments(**changed: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "speculative_algorithm": "NGRAM",
            "speculative_num_draft_tokens": 12,
            "kv_policy": "snapkv",
            "hetero_index": "none",
            "hetero_ablation": "none",
            "hetero_decode_kernel": "auto",
            "hetero_window": 64,
            **changed,
        }
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kv_policy": "heterocache"}, "every so many tokens"),
        ({"kv_policy": "quest"}, "every so many tokens"),
        ({"hetero_decode_kernel": "flashinfer"}, "--hetero-decode-kernel flashinfer"),
        ({"speculative_num_draft_tokens": 33}, "[2, 32]"),
        ({"speculative_num_draft_tokens": 65, "hetero_window": 512}, "[2, 64]"),
        ({"speculative_num_draft_tokens": 1}, "[2, 32]"),
    ],
)
def test_what_cannot_be_verified_is_refused_in_one_sentence(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(HeteroError) as refused:
        check(arguments(**changed))
    text = str(refused.value)
    assert words in text and text.endswith(".") and "\n" not in text


def test_trees_in_pages_are_refused_before_sglang_names_a_backend_that_is_none_here() -> None:
    plain = {"attention_backend": "torch_native", "page_size": 16, "speculative_ngram_max_bfs_breadth": 10}
    with pytest.raises(HeteroError, match=r"no trees in pages of 16 tokens on a CPU; add .*-breadth 1, or use"):
        check_trees(arguments(**plain))
    for fine in (
        {"attention_backend": "flashinfer"},
        {"page_size": 1},
        {"page_size": None},
        {"speculative_ngram_max_bfs_breadth": 1},
        {"speculative_algorithm": None},
    ):
        check_trees(arguments(**{**plain, **fine}))


@pytest.mark.parametrize("changed", [{}, {"speculative_algorithm": None, "kv_policy": "quest"},
                                     {"speculative_num_draft_tokens": 32}])  # fmt: skip
def test_the_rest_is_served(changed: dict[str, Any]) -> None:
    check(arguments(**changed))


def test_a_compiler_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.kernels.jit import utils

    def load_jit(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("ninja exited with status 1\nstdout:\nresult.h: error: no size_t\nmore")

    monkeypatch.setattr(utils, "load_jit", load_jit)
    with pytest.raises(HeteroError) as refused:
        build_corpus()
    text = str(refused.value)
    assert "size_t" in text and text.endswith(".") and "\n" not in text


def test_the_corpus_s_files_are_those_that_sglang_compiles() -> None:
    from inspect import getsource

    from sglang.kernels.ops.speculative import ngram_corpus

    named = re.findall(r'"ngram_corpus/(\w+)\.cpp"', getsource(ngram_corpus.get_ngram_corpus_cls.__wrapped__))
    assert tuple(named) == CORPUS
