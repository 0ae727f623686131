"""What every `cachedlrm.store.host.Store` promises, checked against a dictionary."""

import numpy as np
from hypothesis import strategies as st

from cachedlrm.store.host import Newer, Store
from support.logs import WIDTH, records, scanned

NUM_ADDRESSES = 200
SOME = st.sets(st.integers(0, NUM_ADDRESSES - 1), max_size=60)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 40), SOME),
        st.tuples(st.just("read"), st.just(0), SOME),
        st.tuples(st.just("save"), st.just(0), st.just(set())),
    ),
    max_size=25,
)
"""Of each: what to do, how many addresses are new, and which of the old ones are meant too."""


class Checked:
    """A store, and the dictionary that it should be; addresses come into use in order, as those of touched rows do.

    Args:
        store: of `NUM_ADDRESSES` records of `WIDTH` columns at least; empty.
        most_in_memory: records.
    """

    def __init__(self, store: Store, most_in_memory: int) -> None:
        self.store = store
        self._most_in_memory = most_in_memory
        self._here: dict[int, float] = {}  # address: version

    def write(self, version: int, addresses: list[int]) -> None:
        order = np.random.default_rng(version).permutation(np.array(addresses, np.int64))
        self.store.write(order, records(order, version))
        self._here |= dict.fromkeys(addresses, float(version))

    def check_records(self, addresses: list[int], read: bool) -> None:
        """``read`` or peek."""
        out = np.full((len(addresses), WIDTH), np.nan, np.float32)
        (self.store.read if read else self.store.peek)(np.array(addresses, np.int64), out)
        assert out.tolist() == [[address, self._here[address], self._here[address]] for address in addresses]

    def do(self, version: int, kind: str, num_new: int, chosen: set[int]) -> None:
        """One of `OPERATIONS`; whatever is read goes to the device and comes back."""
        num_used = len(self._here)
        old = [address for address in chosen if address < num_used]
        if kind == "write":
            self.write(version, [*old, *range(num_used, min(num_used + num_new, NUM_ADDRESSES))])
        elif kind == "read":
            self.check_records(old, read=True)
            rest = [address for address in self._here if address not in chosen]
            self.check_records(rest, read=False)  # those beside them stay
            self.write(version, old)
        else:
            self.store.save_changed()

    def check(self) -> None:
        """Every record by each way to read it."""
        num_used = len(self._here)
        self.check_records(list(range(num_used))[::-1], read=False)
        assert scanned(self.store) == self._here
        assert self.store.used_rows == min(num_used, self._most_in_memory)
        order = np.random.default_rng(num_used).permutation(num_used).astype(np.int32)
        newer = np.arange(0, num_used, 3)[::-1]  # the device has another record of every third
        versions = {address: -1.0 if address % 3 == 0 else version for address, version in self._here.items()}
        read = Newer(newer, lambda indices: records(newer[indices], -1))
        between, middle = self.store.arranged(order, read), num_used // 3
        for first, last in ((0, middle), (middle, num_used), (middle, middle + 1), (0, 0)):  # and back
            expected = [[address, versions[address], versions[address]] for address in order[first:last].tolist()]
            assert between(first, min(last, num_used)).tolist() == expected


def check_contract(store: Store, most_in_memory: int, operations: list[tuple[str, int, set[int]]]) -> None:
    """``operations`` on an empty ``store``, which holds ``most_in_memory`` records in memory."""
    checked = Checked(store, most_in_memory)
    store.check_capacity(NUM_ADDRESSES)
    checked.check()
    for version, (kind, num_new, chosen) in enumerate(operations):
        checked.do(version, kind, num_new, chosen)
        checked.check()
