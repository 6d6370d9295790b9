"""Greedy star clustering of a layer's heads (HeteroCache's head taxonomy)."""

import numpy as np

from hetero_sglang.errors import HeteroError


def star_clusters(similarity: np.ndarray, threshold: float, per_rank: int | None = None) -> dict[int, list[int]]:
    """Pivot -> its satellites (ascending), over similarity [H, H] at or above `threshold`.

    The free head with most free neighbours becomes a pivot and takes them, until no two free heads are
    neighbours. Of several the first does: what else tells them apart differs more between texts than between heads.
    With `per_rank` heads per rank, only heads of one rank are neighbours."""
    heads = len(similarity)
    rank = np.arange(heads) // (per_rank or heads)
    near = (similarity >= threshold) & (rank[:, None] == rank[None, :]) & ~np.eye(heads, dtype=bool)
    free = np.ones(heads, dtype=bool)
    clusters: dict[int, list[int]] = {}
    while True:
        open_pairs = near & free[:, None] & free[None, :]
        degree = open_pairs.sum(1)
        if not degree.any():
            return clusters
        pivot = int(degree.argmax())
        satellites = np.flatnonzero(open_pairs[pivot]).tolist()
        clusters[pivot] = satellites
        free[[pivot, *satellites]] = False


def heads_per_rank(num_kv_heads: int, ranks: int | None) -> int | None:
    """KV heads on each of `ranks` tensor-parallel ranks, at least 1; None where one rank holds all.

    Raises HeteroError where a remainder is left."""
    if ranks is None or ranks == 1:
        return None
    if ranks < 1 or max(ranks, num_kv_heads) % min(ranks, num_kv_heads):
        raise HeteroError(
            f"{num_kv_heads} KV heads cannot be divided over {ranks} ranks; choose a number that divides them or is a "
            "multiple of them."
        )
    return max(1, num_kv_heads // ranks)
