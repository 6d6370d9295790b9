"""Which pivots and satellites a look covers: the heads as flat arrays, their work packed for the device."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch

from hetero_sglang.cache.lanes import upload
from hetero_sglang.cache.resident_store import ResidentStore
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.layout import HeadLayout
from hetero_sglang.ops.triton.look import Glance, Pivots


@dataclass
class Subject:
    """A request to be looked at, from layer `layer` on: `row` of the step just run, `length` tokens by then."""

    ws: WorkingSet
    row: int
    length: int
    layer: int = 0
    asked: bool = False  # its anchors' queries are on their way


@dataclass(frozen=True)
class View:
    """One subject's share of a glance: its satellites' numbers [s], and where their pivots' scores [L] begin [s]."""

    ws: WorkingSet
    length: int
    numbers: np.ndarray
    scores: np.ndarray


class Crowd:
    """The rank's pivots and satellites in layer order."""

    def __init__(self, layout: HeadLayout, resident: ResidentStore) -> None:
        pivots: list[tuple[int, int, int, int]] = []
        satellites: list[tuple[int, int]] = []
        base = next((k for k in resident.k if k.numel()), resident.k[0])
        self._first_pivot, self._first_satellite = [0], [0]
        self.place: dict[int, tuple[int, int]] = {}  # layer and index among its compressed heads, by number
        for index, layer in enumerate(layout.layers):
            heads = len(layer.resident) + len(layer.compressed)
            for cluster in layer.clusters:
                satellites += [(layer.first + i, len(pivots)) for i in cluster.satellites]
                query = index * heads + layer.resident[cluster.pivot]
                away = resident.k[index].data_ptr() - base.data_ptr()
                pivots.append((away // base.element_size(), len(layer.resident), cluster.pivot, query))
            self._first_pivot.append(len(pivots))
            self._first_satellite.append(len(satellites))
            self.place |= {layer.first + i: (index, i) for i in range(len(layer.compressed))}
        self.numbers = np.array([s[0] for s in satellites], dtype=np.int64)  # [S] compressed heads of the rank
        self._pivot_of = np.array([s[1] for s in satellites], dtype=np.int64)  # [S]
        device = resident.k[0].device
        table = torch.tensor(pivots, dtype=torch.int64).view(-1, 4).T.contiguous()
        keys, *others = table
        heads_of, place, query_of = (upload(row.int(), device) for row in others)
        self.pivots = Pivots(upload(keys, device), heads_of, place, query_of, base)
        self.layers, self.device = len(layout.layers), device

    def most_floats(self, length: int, group: int) -> int:
        """Workspace that a layer's pivots take at most for a request of `length` tokens."""
        return int(np.diff(self._first_pivot).max(initial=0)) * (group + 1) * length

    def glance(self, queue: list[Subject], space: int, group: int) -> tuple[Glance, list[View]]:
        """As many layers of the queue's subjects as fit `space` floats; what is left stays in the queue."""
        requests: list[Subject] = []
        views: list[View] = []
        items: list[np.ndarray] = []
        pivots: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        pairs: list[np.ndarray] = []
        used = 0
        while queue:
            subject, stride = queue[0], (group + 1) * queue[0].length
            first = subject.layer
            reach = self._first_pivot[first] + (space - used) // stride  # pivots below it fit
            subject.layer = bisect_right(self._first_pivot, reach) - 1
            if subject.layer > first:
                used += (self._first_pivot[subject.layer] - self._first_pivot[first]) * stride
                chosen = np.arange(self._first_pivot[first], self._first_pivot[subject.layer])
                begin = used - chosen.size * stride
                mine = slice(self._first_satellite[first], self._first_satellite[subject.layer])
                which = self._pivot_of[mine] - self._first_pivot[first]  # [s] among the chosen
                starts.append(begin + np.arange(chosen.size) * stride)
                scores = starts[-1][which] + group * subject.length
                views.append(View(subject.ws, subject.length, self.numbers[mine], scores))
                pairs.append(which + sum(one.size for one in pivots))
                pivots.append(chosen)
                items.append(np.full(chosen.size, len(requests)))
                requests.append(subject)
            if subject.layer < self.layers:
                break
            queue.pop(0)
        rows = [[s.ws.slot for s in requests], [s.length for s in requests], [s.row for s in requests]]
        numbers = [v.numbers for v in views]
        parts = [np.array(row) for row in rows] + [np.concatenate(x) for x in (items, pivots, starts, pairs, numbers)]
        return Glance(*[*_uploaded(parts, self.device), max(rows[1])]), views


def _uploaded(parts: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Each of these as int64 on the device, by one copy.

    All begin at 16 bytes: for a pointer that does not, Triton compiles its kernels anew, while everybody waits.
    """
    room = [part.size + part.size % 2 for part in parts]
    packed = torch.zeros(sum(room), dtype=torch.int64)
    for part, place in zip(parts, packed.split(room), strict=True):
        place[: part.size] = torch.from_numpy(part)
    return [place[: part.size] for part, place in zip(parts, upload(packed, device).split(room), strict=True)]
