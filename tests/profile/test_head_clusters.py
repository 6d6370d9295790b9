"""Star clustering and stability weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.clusters import heads_per_rank, star_clusters
from hetero_sglang.profile.thresholds import LEAST_STABILITY, stability_weights


def similarity_of(seed: int, heads: int) -> np.ndarray:
    half = np.random.default_rng(seed).random((heads, heads))
    table = (half + half.T) / 2
    np.fill_diagonal(table, 1.0)
    return table


cases = (st.integers(0, 2**31), st.integers(1, 12), st.floats(0.05, 0.95))


@given(*cases)
def test_every_satellite_is_similar_to_its_pivot_and_in_one_cluster(seed, heads, threshold):
    similarity = similarity_of(seed, heads)
    clusters = star_clusters(similarity, threshold)
    members = [h for pivot, satellites in clusters.items() for h in (pivot, *satellites)]
    assert len(members) == len(set(members))
    for pivot, satellites in clusters.items():
        assert satellites == sorted(satellites) and satellites
        assert all(similarity[pivot, h] >= threshold for h in satellites)


@given(*cases)
def test_heads_left_alone_are_not_similar_to_one_another(seed, heads, threshold):
    similarity = similarity_of(seed, heads)
    clusters = star_clusters(similarity, threshold)
    taken = {h for pivot, satellites in clusters.items() for h in (pivot, *satellites)}
    alone = [h for h in range(heads) if h not in taken]
    assert all(similarity[a, b] < threshold for a in alone for b in alone if a != b)


@given(*cases)
def test_the_first_pivot_has_the_greatest_degree_and_takes_all_its_neighbours(seed, heads, threshold):
    similarity = similarity_of(seed, heads)
    degree = (similarity >= threshold).sum(1) - 1
    clusters = star_clusters(similarity, threshold)
    assert bool(clusters) == bool(degree.max() > 0)
    if clusters:
        pivot, satellites = next(iter(clusters.items()))
        assert len(satellites) == degree[pivot] == degree.max()


@given(*cases, st.integers(0, 2**31))
def test_only_a_similarity_that_crosses_the_threshold_moves_a_cluster(seed, heads, threshold, noise):
    similarity = similarity_of(seed, heads)
    moved = similarity_of(noise, heads)
    near = similarity >= threshold
    moved = np.where(near, threshold + moved * (1 - threshold), moved * 0.999 * threshold)
    assert star_clusters(moved, threshold) == star_clusters(similarity, threshold)


def test_of_heads_with_equal_degree_the_first_is_the_pivot():
    assert star_clusters(np.full((3, 3), 0.9), 0.5) == {0: [1, 2]}


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4]), st.floats(0.05, 0.95))
def test_per_rank_clusters_are_those_of_each_rank_alone(seed, per_rank, threshold):
    similarity = similarity_of(seed, 8)
    wanted = {}
    for start in range(0, 8, per_rank):
        inside = slice(start, start + per_rank)
        for pivot, members in star_clusters(similarity[inside, inside], threshold).items():
            wanted[pivot + start] = [h + start for h in members]
    assert star_clusters(similarity, threshold, per_rank) == wanted


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=50))
def test_weights_have_mean_one_and_fall_with_stability(values):
    stability = np.array(values)
    weights = stability_weights(stability)
    assert weights.mean() == pytest.approx(1.0)
    assert (np.diff(weights[np.argsort(stability)]) <= 1e-12).all()
    product = weights * np.maximum(stability, LEAST_STABILITY)
    np.testing.assert_allclose(product, product[0])


def test_no_compressed_heads_have_no_weights():
    assert stability_weights(np.array([])).shape == (0,)


@pytest.mark.parametrize(("heads", "ranks", "wanted"), [(8, None, None), (8, 1, None), (8, 2, 4), (8, 8, 1), (4, 8, 1)])
def test_heads_per_rank(heads, ranks, wanted):
    assert heads_per_rank(heads, ranks) == wanted


@pytest.mark.parametrize("ranks", [0, -2, 3, 12])
def test_ranks_that_leave_a_remainder_are_refused(ranks):
    with pytest.raises(HeteroError, match=f"over {ranks} ranks"):
        heads_per_rank(8, ranks)
