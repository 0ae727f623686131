"""What torch's caching allocator holds, after c10/cuda/CUDACachingAllocator.cpp: segments, of which blocks are cut.

The driver gives segments. They stay with the stream for which they were made, and an allocation of another stream
cannot use what is idle in them; that is why more is reserved than was ever allocated.
"""

from dataclasses import dataclass

MIB = 1 << 20
ROUNDING = 512  # kMinBlockSize
SMALL_BYTES = MIB  # kSmallSize: at most this is cut of segments of SMALL_SEGMENT_BYTES
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
MEDIUM_BYTES = 10 * MIB  # kMinLargeAlloc: below this, of segments of MEDIUM_SEGMENT_BYTES
MEDIUM_SEGMENT_BYTES = 20 * MIB  # kLargeBuffer
SEGMENT_ROUNDING = 2 * MIB  # kRoundLarge: larger ones get a segment of their own


@dataclass(eq=False)
class Block:
    """A part of a segment.

    Attributes:
        num_bytes: its size.
        pool: the stream it belongs to, whether it is small, and the pool of graphs that owns it, if one does.
        before, after: its neighbours in the segment.
        is_free: whether it may be given out.
    """

    num_bytes: int
    pool: tuple[int, bool, object]
    before: "Block | None" = None
    after: "Block | None" = None
    is_free: bool = True


class CachingAllocator:
    """Counts the bytes that are allocated, and those of segments, which are reserved.

    Args:
        total_bytes: of the device.

    Attributes:
        limit_bytes: the most that may be reserved.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = self.limit_bytes = total_bytes
        self.allocated = self.peak_allocated = self.reserved = self.peak_reserved = 0
        self._free: dict[tuple[int, bool, object], list[Block]] = {}

    def allocate(self, num_bytes: int, stream: int, graph_pool: object = None) -> Block:
        """The smallest free block that is large enough, cut where much of it would be left; else a new segment.

        Raises:
            MemoryError: the device is full.
        """
        wanted = max(ROUNDING, _rounded(num_bytes, ROUNDING))
        is_small = wanted <= SMALL_BYTES
        pool = (stream, is_small, graph_pool)
        free = self._free.setdefault(pool, [])
        block = min((block for block in free if block.num_bytes >= wanted), key=lambda b: b.num_bytes, default=None)
        if block is None:
            block = self._new_segment(wanted, pool)
        else:
            free.remove(block)
        left = block.num_bytes - wanted
        if left >= ROUNDING if is_small else left > SMALL_BYTES:
            rest = Block(left, pool, before=block, after=block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.num_bytes = rest, wanted
            free.append(rest)
        block.is_free = False
        self.allocated += block.num_bytes
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def _new_segment(self, wanted: int, pool: tuple[int, bool, object]) -> Block:
        if pool[1]:
            size = SMALL_SEGMENT_BYTES
        elif wanted < MEDIUM_BYTES:
            size = MEDIUM_SEGMENT_BYTES
        else:
            size = _rounded(wanted, SEGMENT_ROUNDING)
        if self.reserved + size > self.limit_bytes:
            self.release_idle_segments()
        if self.reserved + size > self.limit_bytes:
            raise MemoryError
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return Block(size, pool)

    def give_back(self, block: Block) -> None:
        """Frees a block and joins it with its free neighbours."""
        self.allocated -= block.num_bytes
        free = self._free[block.pool]
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.is_free:
                free.remove(neighbour)
                block.num_bytes += neighbour.num_bytes
                if neighbour is block.before:
                    block.before = neighbour.before
                else:
                    block.after = neighbour.after
        if block.before is not None:
            block.before.after = block
        if block.after is not None:
            block.after.before = block
        block.is_free = True
        free.append(block)

    def release_idle_segments(self) -> None:
        """Gives segments of which nothing is in use back to the driver, as ``torch.cuda.empty_cache`` does.

        Those of graphs stay theirs as long as the graphs live.
        """
        for pool, free in self._free.items():
            if pool[2] is None:
                idle = [block for block in free if block.before is None and block.after is None]
                self.reserved -= sum(block.num_bytes for block in idle)
                free[:] = [block for block in free if block not in idle]

    def limit(self, fraction: float) -> None:
        """As ``torch.cuda.set_per_process_memory_fraction``."""
        self.limit_bytes = int(fraction * self.total_bytes)

    def reset_peaks(self) -> None:
        """As ``torch.cuda.reset_peak_memory_stats``."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved


def _rounded(num_bytes: int, unit: int) -> int:
    return -(-num_bytes // unit) * unit
