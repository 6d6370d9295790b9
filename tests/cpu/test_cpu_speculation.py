"""What speculative decoding calls of sgl_kernel, on the CPU, against SGLang's own words for it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from hetero_sglang.cpu import speculation


def parents_of(seed: int, count: int) -> list[int]:
    """A tree at random, of which some nodes are padding, children of the root."""
    rng = random.Random(seed)
    return [-1, *(rng.randrange(node) if rng.random() < 0.8 else 0 for node in range(1, count))]


def mask_of(parents: list[int]) -> torch.Tensor:
    mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask


def links(seed: int, batch: int, count: int) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Trees, and what is made of their masks: positions behind 10, 20, ... tokens, indexes, children and siblings."""
    trees = [parents_of(seed + b, count) for b in range(batch)]
    made = [torch.zeros(batch * count, dtype=torch.int64), *(torch.zeros(3, batch, count, dtype=torch.int64))]
    mask = torch.stack([mask_of(tree) for tree in trees]).flatten()
    lengths = 10 * torch.arange(1, batch + 1)
    speculation.reconstruct_indices_from_tree_mask(mask, lengths, *made, batch, count)
    return trees, made


@pytest.mark.parametrize("seed", range(5))
def test_links_of_a_tree_are_those_that_sglang_derives_of_its_mask(seed: int) -> None:
    ngram_worker = pytest.importorskip("sglang.srt.speculative.ngram_worker")
    batch, count = 3, 12
    trees, (positions, index, child, sibling) = links(seed, batch, count)
    mask = np.stack([mask_of(tree).numpy() for tree in trees])
    wanted = ngram_worker._derive_tree_links(mask.flatten(), batch, count)
    assert torch.equal(child, wanted[0]) and torch.equal(sibling, wanted[1])
    assert torch.equal(index.flatten(), torch.arange(batch * count))
    depths = [[int(mask_of(tree)[node].sum()) - 1 for node in range(count)] for tree in trees]
    assert positions.view(batch, count).tolist() == [[10 * (b + 1) + d for d in depths[b]] for b in range(batch)]


@pytest.mark.parametrize("seed", range(8))
def test_the_path_that_the_model_takes_is_accepted(seed: int) -> None:
    """Token by token as one would say it: of a token's children the one that is what comes next."""
    batch, count, rng = 2, 10, random.Random(seed)
    trees, (_, index, child, sibling) = links(seed, batch, count)
    drafts = torch.tensor([[rng.randrange(3) for _ in range(count)] for _ in range(batch)])
    said = torch.tensor([[rng.randrange(3) for _ in range(count)] for _ in range(batch)])
    predicts = torch.zeros(batch * count, dtype=torch.int32)
    accepted, number = torch.full((batch, count), -1, dtype=torch.int32), torch.empty(batch, dtype=torch.int32)
    speculation.verify_tree_greedy_cpu(predicts, accepted, number, drafts, index, child, sibling, said)
    for b, tree in enumerate(trees):
        node, path = 0, [0]
        while children := [n for n in range(1, count) if tree[n] == node and drafts[b, n] == said[b, node]]:
            node = children[0]
            path.append(node)
        assert accepted[b].tolist() == [b * count + n for n in path] + [-1] * (count - len(path))
        assert int(number[b]) == len(path) - 1
        assert predicts.view(batch, count)[b, path].tolist() == said[b, path].tolist()


def test_slots_of_ranges_come_and_go() -> None:
    table, requests = torch.zeros(4, 20, dtype=torch.int32), torch.tensor([2, 0])
    start, end, slots = torch.tensor([3, 0]), torch.tensor([7, 2]), torch.arange(50, 56)
    speculation.assign_req_to_token_pool_cpu(requests, table, start, end, slots, 20)
    assert table[2, 3:7].tolist() == [50, 51, 52, 53] and table[0, :2].tolist() == [54, 55] and int(table.sum()) == 315
    out = torch.zeros(9, dtype=torch.int64)
    speculation.assign_extend_cache_locs_cpu(requests, table, start + 1, end, out, 20)
    assert out.tolist() == [51, 52, 53, 55, 0, 0, 0, 0, 0]
    kept = torch.zeros(6, dtype=torch.int64)
    speculation.fill_accept_out_cache_loc_cpu(torch.tensor([[0, 2, -1], [3, -1, -1]]), slots, kept)
    assert kept.tolist() == [50, 52, 53, 0, 0, 0]
