"""KV cache clustering against its rule: chunked soft matching, and tokens by their cluster's centroid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive import DTYPES, HEADS, best, check_choice, dot, fresh, picked_by, through_pool

from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Refresh
from hetero_sglang.policy.kvcluster import CHUNK, CLUSTERS, KVCluster, soft_matching
from hetero_sglang.policy.rows import rows_to_bytes


def naive_matching(keys: torch.Tensor) -> list[set[int]]:
    """Clusters of one chunk's keys, in order: three rounds in which even clusters join their likest odd one."""
    clusters = [({token}, keys[token].tolist()) for token in range(CHUNK)]
    for _ in range(3):
        odd = [[(set(members), centre)] for members, centre in clusters[1::2]]
        for even in clusters[::2]:
            likeness = [cosine(even[1], centre) for _, centre in clusters[1::2]]
            odd[likeness.index(max(likeness))].append(even)
        clusters = []
        for joined in odd:
            size = sum(len(members) for members, _ in joined)
            centre = [sum(len(members) * vector[d] for members, vector in joined) / size for d in range(keys.shape[1])]
            clusters.append((set().union(*(members for members, _ in joined)), centre))
    return [members for members, _ in clusters]


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def naive_scores(queries: torch.Tensor, keys: torch.Tensor, members: list[set[int]]) -> list[float]:
    """queries [G, D], keys [CHUNK, D]: each token's cluster's mean, rounded as it is stored, against every query."""
    out = [0.0] * CHUNK
    for cluster in members:
        mean = sum(keys[token].double() for token in cluster) / len(cluster)
        logit = max(dot(query, mean.float().to(keys.dtype)) for query in queries)
        for token in cluster:
            out[token] = logit
    return out


def stored_clusters(k_rows: torch.Tensor, v_rows: torch.Tensor) -> list[set[int]]:
    """Members of each cluster as one unit's rows [5, D] tell."""
    member = rows_to_bytes(k_rows[-1], v_rows[-1], CHUNK).tolist()
    return [{token for token in range(CHUNK) if member[token] == cluster} for cluster in range(CLUSTERS)]


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_soft_matching_follows_the_rule(dim: int) -> None:
    """In float64, where no two similarities are close enough for rounding to swap them."""
    keys = fresh(6, CHUNK, dim).double()
    centroids, member = soft_matching(keys)
    for unit in range(6):
        wanted = naive_matching(keys[unit])
        assert [{t for t in range(CHUNK) if member[unit, t] == cluster} for cluster in range(CLUSTERS)] == wanted
        for cluster, tokens in enumerate(wanted):
            torch.testing.assert_close(centroids[unit, cluster], keys[unit, sorted(tokens)].mean(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize("units", [0, 1, 3])
def test_an_index_that_went_through_the_pool_gives_the_logits_of_centroids(
    dtype: torch.dtype, heads: int, group: int, units: int
) -> None:
    keys, q = fresh(heads, units, CHUNK, 16, dtype=dtype), fresh(heads, group, 16, dtype=dtype)
    index = KVCluster.index
    k_rows, v_rows = index.build(keys, 16)
    assert k_rows.shape == v_rows.shape == (heads, units, index.rows, 16) and k_rows.dtype == v_rows.dtype == dtype
    k_rows, v_rows = through_pool(k_rows, v_rows)
    got = index.scores(q, k_rows, v_rows, 0.35)
    assert got.shape == (heads, units * CHUNK) and got.dtype == torch.float32
    for head in range(heads):
        wanted = []
        for unit in range(units):
            members = stored_clusters(k_rows[head, unit], v_rows[head, unit])
            assert all(members) and set().union(*members) == set(range(CHUNK)), "a cluster lost its tokens"
            wanted += naive_scores(q[head], keys[head, unit], members)
        slack = 1e-4 if dtype is torch.float32 else 0.05  # a mean on the edge may be rounded the other way
        assert got[head].tolist() == pytest.approx(wanted, rel=1e-4, abs=slack)


@pytest.mark.parametrize("dtype", DTYPES)
def test_planted_clusters_are_found_and_stored(dtype: torch.dtype) -> None:
    """Runs of eight tokens of one direction, far from the others': half of each run stays in every round."""
    directions = 5 * torch.eye(CLUSTERS, 16)[torch.randperm(CLUSTERS)]
    keys = directions.repeat_interleave(8, 0) + 0.01 * fresh(CHUNK, 16)
    k_rows, v_rows = KVCluster.index.build(keys.to(dtype)[None, None], 16)
    assert stored_clusters(k_rows[0, 0], v_rows[0, 0]) == [set(range(8 * run, 8 * run + 8)) for run in range(CLUSTERS)]
    stored = torch.cat((k_rows[0, 0, :-1], v_rows[0, 0, :-1])).float()
    torch.testing.assert_close(stored, directions, atol=0.05, rtol=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize("length", [1, 31, 32, 33, 150])
def test_prompt_scores_are_by_chunk_and_exact_for_the_rest(
    dtype: torch.dtype, heads: int, group: int, length: int
) -> None:
    q, k = fresh(2, heads, group, 16, dtype=dtype), fresh(length, heads, 16, dtype=dtype)
    got = KVCluster().scores(q, k, 0.35)
    assert got.shape == (heads, length) and got.dtype == torch.float32
    whole = length // CHUNK * CHUNK
    for head in range(heads):
        for start in range(0, whole, CHUNK):
            keys = k[start : start + CHUNK, head][None, None]
            alone = KVCluster.index.scores(q[-1, head][None], *KVCluster.index.build(keys, 16), 0.35)
            torch.testing.assert_close(got[head, start : start + CHUNK], alone[0], atol=1e-5, rtol=1e-5)
        rest = [max(dot(query, key) for query in q[-1, head]) for key in k[whole:, head]]
        assert got[head, whole:].tolist() == pytest.approx(rest, rel=1e-4, abs=1e-4)


@given(
    st.lists(st.integers(0, CLUSTERS - 1), min_size=CHUNK + 6, max_size=CHUNK + 6),
    st.lists(st.integers(0, 50), min_size=1, max_size=3),
)
def test_whole_clusters_are_picked(member: list[int], counts: list[int]) -> None:
    """The token's cluster is its score; the last six tokens are not indexed yet."""
    row = [float(m) for m in member[:CHUNK]] + [float("-inf")] * 6
    picked = picked_by(KVCluster(), torch.tensor([row] * len(counts)), counts, 3, CHUNK + 4)
    check_choice(picked, counts, 3, CHUNK + 4)
    for positions, count in zip(picked, counts, strict=True):
        assert positions.tolist() == best(row, count, 3, CHUNK + 4)
        taken = set(positions.tolist())
        sets = [{t for t in range(3, CHUNK) if member[t] == cluster} for cluster in range(CLUSTERS)]
        assert sum(1 for tokens in sets if taken & tokens and tokens - taken) <= 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(HeteroError, match="16 and 8 wide"):
        KVCluster.index.build(torch.zeros(1, 0, CHUNK, 16), 8)
    with pytest.raises(HeteroError, match="hold 16"):
        KVCluster.index.build(torch.zeros(1, 1, CHUNK, 4, dtype=torch.bfloat16), 4)


def test_clusters_are_chosen_at_every_step() -> None:
    assert KVCluster.refresh is Refresh.STEP and KVCluster().index_share == 3 / 32
    assert KVCluster().index_rows(100, 130, 0.5, 64) == 15
