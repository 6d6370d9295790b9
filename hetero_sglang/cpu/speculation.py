"""Speculative decoding on the CPU: what SGLang takes from sgl_kernel for it, in torch.

The kernels' own names and arguments; all write to tensors that they are given. A verification has `n` tokens of each
request, in a tree that begins with the one that was sampled last."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the platform is chosen while torch may not be there yet
    import torch


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor, req_to_token: torch.Tensor, start_offset: torch.Tensor, end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor, pool_len: int,
) -> None:  # fmt: skip
    """Token slots out_cache_loc [m] become those of tokens [start, end) of each request, in turn."""
    at = 0
    for request, start, end in _ranges(req_pool_indices, start_offset, end_offset):
        req_to_token[request, start:end] = out_cache_loc[at : at + end - start].to(req_to_token.dtype)
        at += end - start


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor, req_to_token: torch.Tensor, start_offset: torch.Tensor, end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor, pool_len: int,
) -> None:  # fmt: skip
    """The reverse: the slots of tokens [start, end) of each request, to out_cache_loc [>= m]."""
    at = 0
    for request, start, end in _ranges(req_pool_indices, start_offset, end_offset):
        out_cache_loc[at : at + end - start] = req_to_token[request, start:end].to(out_cache_loc.dtype)
        at += end - start


def _ranges(requests: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> zip[tuple[int, int, int]]:
    return zip(requests.tolist(), start.tolist(), end.tolist(), strict=True)


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor, out_cache_loc: torch.Tensor, accept_out_cache_loc: torch.Tensor
) -> None:
    """Slots of the tokens that accept_index names, one behind the other; -1 names none."""
    accepted = accept_index.flatten()
    accepted = accepted[accepted >= 0].long()
    accept_out_cache_loc[: accepted.numel()] = out_cache_loc[accepted]


def verify_tree_greedy_cpu(
    predicts: torch.Tensor, accept_index: torch.Tensor, accept_token_num: torch.Tensor, candidates: torch.Tensor,
    retrive_index: torch.Tensor, retrive_next_token: torch.Tensor, retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:  # fmt: skip
    """The path of each request's tree that the model's own tokens `target_predict` [B, n] take, of `candidates` [B, n].

    Written: where its tokens are, accept_index [B, <= n]; how many but the first, accept_token_num [B]; and what the
    model says after each, predicts [B * n]. `retrive_*` [B, n]: where a token is, its first child and next sibling."""
    said = target_predict.flatten().tolist()
    index, child, sibling, drafts = (
        each.tolist() for each in (retrive_index, retrive_next_token, retrive_next_sibling, candidates)
    )
    for b in range(len(drafts)):
        node, path = 0, [index[b][0]]
        while len(path) < accept_index.shape[1]:
            node = child[b][node]
            while node >= 0 and drafts[b][node] != said[path[-1]]:
                node = sibling[b][node]
            if node < 0:
                break
            path.append(index[b][node])
        for at, where in enumerate(path):
            accept_index[b, at] = where
            predicts[where] = said[where]
        accept_token_num[b] = len(path) - 1


def reconstruct_indices_from_tree_mask(
    tree_mask: torch.Tensor, verified_seq_len: torch.Tensor, positions: torch.Tensor, retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor, retrive_next_sibling: torch.Tensor, batch_size: int, draft_token_num: int,
) -> None:  # fmt: skip
    """What `verify_tree_greedy_cpu` reads, and tokens' positions [B * n], of tree_mask [B * n * n]: whether a token
    attends to another, as it does to those above it and itself; verified_seq_len [B]: tokens before."""
    mask = tree_mask.view(batch_size, draft_token_num, draft_token_num).bool()
    depth = mask.sum(-1) - 1  # [B, n]
    positions.copy_((verified_seq_len[:, None] + depth).flatten())
    retrive_next_token.fill_(-1)
    retrive_next_sibling.fill_(-1)
    for b, rows in enumerate(mask.tolist()):
        eldest: dict[int, int] = {}
        for node in range(draft_token_num - 1, -1, -1):
            retrive_index[b, node] = b * draft_token_num + node
            retrive_next_token[b, node] = eldest.get(node, -1)
            above = [other for other in range(node) if rows[node][other]]
            if above:
                retrive_next_sibling[b, node] = eldest.get(above[-1], -1)
                eldest[above[-1]] = node
