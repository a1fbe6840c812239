"""Room in a piece of memory, given out in order and taken back in any order."""

from collections import deque

ALIGNMENT = 64


class Ring:
    """Places in `size` bytes. Not locked: one thread, or the caller's own lock."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken: deque[tuple[int, int]] = deque()  # (offset, end), oldest first
        self._freed: set[int] = set()

    def __len__(self) -> int:
        """Places that are taken."""
        return len(self._taken) - len(self._freed)

    def take(self, size: int) -> int | None:
        """Offset of `size` bytes in a row; None where there is no room before something older is given back."""
        size = max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
        offset = self._room(size)
        if offset is not None:
            self._taken.append((offset, offset + size))
        return offset

    def _room(self, size: int) -> int | None:
        if not self._taken:
            return 0 if size <= self.size else None
        tail, head = self._taken[0][0], self._taken[-1][1]
        if self._taken[-1][0] >= tail:  # not wrapped: room behind the newest, or before the oldest
            if size <= self.size - head:
                return head
            return 0 if size <= tail else None
        return head if size <= tail - head else None

    def free(self, offset: int) -> None:
        """Gives a place back."""
        self._freed.add(offset)
        while self._taken and self._taken[0][0] in self._freed:
            self._freed.discard(self._taken.popleft()[0])
