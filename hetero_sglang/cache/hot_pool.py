"""The hot pool: pages of K/V rows for the compressed heads' working sets.

Every row carries the position of its token and an importance score, so that what a working set holds can be
read back, checked and ranked without a second table."""

import torch

from hetero_sglang.cache.lanes import upload

EMPTY = -1  # position of a row that holds no token
PINNED = 1 << 30  # added to `used` of rows that others have too: they stay


class HotPool:
    """Pages of P rows; one page belongs to one (request, layer, compressed head) at a time.

    Buffers, with one page that is never given away: `k` [pages + 1, P, D], `v` [pages + 1, P, Dv], `position`
    [pages + 1, P] int32, `score` [pages + 1, P] float32."""

    def __init__(
        self, pages: int, page_size: int, head_dim: int, v_head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.pages = pages
        self.page_size = page_size
        self.spare = pages * page_size  # a flat row that nobody owns: what must go nowhere is written there
        self.k = torch.zeros(pages + 1, page_size, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(pages + 1, page_size, v_head_dim, dtype=dtype, device=device)
        self.position = torch.full((pages + 1, page_size), EMPTY, dtype=torch.int32, device=device)
        self.score = torch.zeros(pages + 1, page_size, dtype=torch.float32, device=device)
        self.used = self.score.view(torch.int32)  # the same bytes, where a head's rows change lazily: when last wanted
        # A stack whose top is the lowest page: fresh allocations are runs, which decode reads without a copy.
        self._free = torch.arange(self.pages - 1, -1, -1, dtype=torch.int64)  # [pages], first `available` valid
        self._is_free = torch.ones(self.pages, dtype=torch.bool)
        self.available = self.pages

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.k, self.v, self.position, self.score))

    def alloc(self, count: int) -> torch.Tensor | None:
        """Take `count` pages; ids [count] int64 on the CPU, or None when fewer are free."""
        if count > self.available:
            return None
        top = self.available
        taken = self._free[top - count : top].flip(0)
        self.available = top - count
        self._is_free[taken] = False
        return taken

    def free(self, pages: torch.Tensor) -> None:
        """Give pages back; a page given back twice is an error of ours and raises."""
        count = pages.numel()
        if bool(self._is_free[pages].any()):
            raise RuntimeError(f"hot pages {pages[self._is_free[pages]].tolist()[:8]} were freed twice")
        self._is_free[pages] = True
        self._free[self.available : self.available + count] = pages.flip(0)
        self.available += count
        if self.position.device.type == "cpu":  # a device's rows are read by steps still under way
            self.position[pages] = EMPTY

    def write(self, rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store K/V at flat rows [m]: k [m, D], v [m, Dv]."""
        self.k.view(-1, self.k.shape[-1])[rows] = k
        self.v.view(-1, self.v.shape[-1])[rows] = v

    def copy(self, pages: torch.Tensor, to: torch.Tensor) -> None:
        """All rows of `pages` [n] to the pages `to` [n], on the device; nothing waits for it."""
        device, at_once = self.k.device, 4096  # bounds what lies between
        for source, target in zip(pages.split(at_once), to.split(at_once), strict=True):
            source, target = upload(source, device), upload(target, device)
            for store in (self.k, self.v, self.position, self.score):
                store[target] = store[source]

    def pin(self, pages: torch.Tensor, stay: bool) -> None:
        """All rows of `pages` [n] stay where they are, or may go again."""
        index = upload(pages, self.k.device)
        self.used[index] = self.used[index] + (PINNED if stay else -PINNED)

    def check_integrity(self, owned: torch.Tensor) -> None:
        """Every page is free or owned by exactly one request: `owned` lists the owners' pages.

        Raises RuntimeError with the counts when the law is broken."""
        mine = torch.zeros_like(self._is_free)
        mine[owned] = True  # requests wait meanwhile, and sorting millions of pages takes a tenth of a second
        distinct = int(mine.sum())
        if self.available + owned.numel() != self.pages or distinct != owned.numel():
            raise RuntimeError(
                f"hot pool: {self.available} free + {owned.numel()} owned ({distinct} distinct) != {self.pages} pages"
            )
        if int(self._is_free.sum()) != self.available or bool((self._is_free & mine).any()):
            raise RuntimeError("hot pool: an owned page is on the free list")
