"""How groups of tables share what was given for all of them: slots on the device, records in host memory."""

from collections.abc import Sequence

from cachedlrm.store.lmdb_store import frames_for
from cachedlrm.store.records import GroupShape


def share_rows(groups: Sequence[GroupShape], num_rows: int) -> list[int]:
    """Slots of each group, at least one; ``num_rows`` are given for all."""
    return [max(1, rows) for rows in _shares([group.num_rows for group in groups], max(1, num_rows))]


def share_bytes(groups: Sequence[GroupShape], num_bytes: int) -> list[int]:
    """Slots of each group, possibly none; ``num_bytes`` are given for the records of all."""
    shares = _shares([group.num_bytes for group in groups], num_bytes)
    return [share // group.layout.record_bytes for share, group in zip(shares, groups, strict=True)]


def _shares(wanted: Sequence[int], total: int) -> list[int]:
    """What each group gets of ``total``.

    Groups that want no more than an even share get all they want, as small tables do within a group; the others divide
    the rest by what they want.
    """
    left = min(total, sum(wanted))
    given: dict[int, int] = {}
    for number in sorted(range(len(wanted)), key=wanted.__getitem__):
        if wanted[number] > left // (len(wanted) - len(given)):
            break
        given[number] = wanted[number]
        left -= wanted[number]
    rest = sum(want for number, want in enumerate(wanted) if number not in given)
    return [given[number] if number in given else left * want // rest for number, want in enumerate(wanted)]


def store_rows(groups: Sequence[GroupShape], num_bytes: int, spills: bool) -> tuple[int, ...]:
    """Records of each group that host memory may hold.

    Args:
        groups: of tables.
        num_bytes: that records of all may take.
        spills: whether others go to the disk.

    Raises:
        UserError: too few for that; names ``--host-budget``.
    """
    if spills:
        num_bytes = num_bytes * 3 // 4  # the rest is for what waits to be written
    all_bytes = sum(group.num_bytes for group in groups)
    rows = []
    for group in groups:
        share = num_bytes * group.num_rows // all_bytes  # all groups are full at once, so of records
        if spills:
            share = frames_for(share * group.layout.record_bytes, group.layout.record_bytes, group.num_rows)
        rows.append(max(1, share))
    return tuple(rows)
