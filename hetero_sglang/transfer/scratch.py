"""Shared memory in which questions go to the retrieval worker, and answers come back."""

from hetero_sglang.cache.shared_memory import SharedMemory

_PAGE = 4096


class Scratch:
    """Bytes lent out in whole pages, first fit. A loan is the range of its bytes."""

    def __init__(self, nbytes: int) -> None:
        """HeteroError when the memory cannot be had; what is never lent takes none."""
        self.memory = SharedMemory("hetero-scratch", nbytes)
        self._lent: list[range] = []

    def lend(self, nbytes: int) -> range | None:
        """A page or more, so that every loan has a place of its own; None when there is no such gap now."""
        size, start = max(1, -(-nbytes // _PAGE)) * _PAGE, 0
        for loan in sorted(self._lent, key=lambda loan: loan.start):
            if loan.start - start >= size:
                break
            start = loan.stop
        if self.memory.nbytes - start < size:
            return None
        self._lent.append(range(start, start + size))
        return self._lent[-1]

    def take_back(self, loan: range) -> None:
        """ValueError when it is not lent."""
        self._lent.remove(loan)

    def take_all_back(self) -> None:
        """For when nobody is left who could write there."""
        self._lent.clear()

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()
