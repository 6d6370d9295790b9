"""KV cache clustering, or CentroidKV (arXiv 2506.11418): at every step, the clusters that fit the query best."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from hetero_sglang.policy.base import Index, Policy, Refresh
from hetero_sglang.policy.rows import bytes_to_rows, last_query_scores, require_one_width, rows_to_bytes

CHUNK = 32  # tokens clustered among themselves
ROUNDS = 3  # each halves the number of clusters
CLUSTERS = CHUNK >> ROUNDS


class CentroidIndex(Index):
    """Per chunk three rows: centroids 0 and 1 as K rows, 2 and 3 as V rows, then each token's cluster, a byte each."""

    span: ClassVar[int] = CHUNK
    rows: ClassVar[int] = CLUSTERS // 2 + 1

    def build(self, k: torch.Tensor, v_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        require_one_width(k.shape[-1], v_dim)
        # Head by head: in float32, and with every pair's similarity, all heads at once would be several times k.
        clustered = [soft_matching(keys.float()) for keys in k]
        centroids = torch.stack([c for c, _ in clustered]).to(k.dtype)  # [C, U, CLUSTERS, D]
        member = torch.stack([m for _, m in clustered]).to(torch.uint8)  # [C, U, CHUNK]
        one, other = bytes_to_rows(member, k.shape[-1], k.dtype)  # [C, U, D]
        half = CLUSTERS // 2
        return (
            torch.cat((centroids[:, :, :half], one[:, :, None]), 2),
            torch.cat((centroids[:, :, half:], other[:, :, None]), 2),
        )

    def scores(
        self, q: torch.Tensor, k_rows: torch.Tensor, v_rows: torch.Tensor, scale: float,
        real: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The largest logit of the group with a token's centroid, without `scale`: [C, U * CHUNK]."""
        centroids = torch.cat((k_rows[:, :, :-1], v_rows[:, :, :-1]), 2).float()  # [C, U, CLUSTERS, D]
        logits = (q.float() @ centroids.flatten(1, 2).transpose(1, 2)).amax(1).unflatten(1, centroids.shape[1:3])
        member = rows_to_bytes(k_rows[:, :, -1], v_rows[:, :, -1], CHUNK)  # [C, U, CHUNK]
        return logits.gather(2, member.long().clamp(max=CLUSTERS - 1)).flatten(1)  # from [C, U, CLUSTERS]


def soft_matching(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunked soft matching of keys [U, CHUNK, D] float32: centroids [U, CLUSTERS, D] and tokens' clusters [U, CHUNK].

    In a round every even cluster joins the odd one whose centroid has the most similar direction."""
    member = torch.arange(CHUNK, device=keys.device).expand(keys.shape[0], -1)
    centroids = keys
    for _ in range(ROUNDS):
        one, other = F.normalize(centroids[:, ::2], dim=-1), F.normalize(centroids[:, 1::2], dim=-1)
        link = (one @ other.transpose(1, 2)).argmax(-1)  # [U, n / 2]
        numbers = torch.arange(link.shape[1], device=keys.device)
        member = torch.stack((link, numbers.expand_as(link)), 2).flatten(1).gather(1, member)
        # Merging by size-weighted means is the mean of all members; as a product, not by adding in no fixed order.
        belongs = (member[..., None] == numbers).to(keys.dtype)  # [U, CHUNK, n / 2]
        centroids = belongs.transpose(1, 2) @ keys / belongs.sum(1)[..., None]
    return centroids, member


@dataclass(frozen=True)
class KVCluster(Policy):
    """Tokens by the logit of their cluster's centroid, the maximum over the GQA group; clusters come as a whole.

    Ours differs: centroids are an index only, and the rows attended to are the raw ones, so a shared prefix stays
    exact (the paper attends to centroids in their place); hence no bias for a cluster's size, which such a
    replacement needs and a selection does not. Rows not chosen are in host memory. A chunk has 32 tokens and 4
    centroids everywhere; of the cluster that no longer fits as a whole, the earliest tokens are picked."""

    name: ClassVar[str] = "kvcluster"
    refresh: ClassVar[Refresh] = Refresh.STEP
    index: ClassVar[Index] = CentroidIndex()

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """The last query's logits with centroids, with the keys themselves in an incomplete last chunk."""
        return last_query_scores(self.index, q[-1], k, scale)
