"""Avazu's click log (Kaggle, 2014): CSV with a header; label ``click``, and categories only.

The number of an advertisement's showing, ``id``, is left out. ``hour`` (YYMMDDHH) names an hour of the log, which no
later sample shares; it becomes the hour of the day and the day of the week, and a clock's hand as two dense features.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.keys import hex_keys, integer_keys
from cachedlrm.data.raw.lines import LineTable, TextFormat, labels_of
from cachedlrm.data.raw.samples import Position, Samples, UnparsableError
from cachedlrm.data.raw.text_kinds import UTF8_MARK

_HEX = (
    "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
    "device_id", "device_ip", "device_model",
)  # fmt: skip
_HEADER = (
    "id", "click", "hour", "C1", "banner_pos", *_HEX, "device_type", "device_conn_type",
    *(f"C{number}" for number in range(14, 22)),
)  # fmt: skip


class Avazu(TextFormat):
    """Samples of the log; see the module."""

    name = "avazu"
    dense_names: tuple[str, ...] = ("hour_sin", "hour_cos")
    table_names: tuple[str, ...] = ("hour_of_day", "weekday", *_HEADER[3:])
    key_dtype = np.dtype(np.uint64)

    def __init__(self, block_bytes: int) -> None:
        super().__init__(block_bytes)
        types = dict.fromkeys(_HEADER, pa.int64()) | {"id": pa.binary(), "click": pa.int32()}
        self._table = LineTable(types | dict.fromkeys(_HEX, pa.binary()), ",", quoted=True)

    def _begin(self, path: Path, text: bytes) -> Position:
        """After the header, whose names may be in quotes."""
        line, newline, _ = text.partition(b"\n")
        names = line.removeprefix(UTF8_MARK).rstrip(b"\r").replace(b'"', b"").decode("ascii", "replace")
        if text and tuple(names.split(",")) != _HEADER:
            raise UserError(
                f"{shown(path)}: line 1 is not the header of Avazu's train file, {','.join(_HEADER)}; name that file, "
                "or read others with python -m cachedlrm.prepare csv"
            )
        return Position(len(line + newline), 1)

    def _parse(self, text: bytes, num_lines: int, path: Path) -> Samples:
        table = self._table.read(text, num_lines)
        labels = labels_of(table.column("click").combine_chunks())
        hours, weekdays = _clock(table.column("hour").fill_null(0).to_numpy())
        keys = np.empty((len(self.table_names), num_lines), self.key_dtype)
        keys[0], keys[1] = hours, weekdays
        for number, name in enumerate(self.table_names[2:], 2):
            make_keys = hex_keys if name in _HEX else integer_keys
            make_keys(table.column(name).combine_chunks(), keys[number])
        angles = 2 * np.pi * np.arange(24) / 24
        hands = np.column_stack([np.sin(angles), np.cos(angles)]).astype(np.float32)
        return Samples(hands[hours], labels, keys)


def _clock(stamps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hour of the day and day of the week (Monday 0) of YYMMDDHH."""
    year, month, day, hour = (stamps // 10**6, stamps // 10**4 % 100, stamps // 100 % 100, stamps % 100)
    good = (year >= 0) & (year < 100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31) & (hour < 24)
    if not good.all():
        raise UnparsableError(f"hour {stamps[good.argmin()]} is not YYMMDDHH")
    months = ((year + 30) * 12 + month - 1).astype("datetime64[M]")  # since 1970
    days = months.astype("datetime64[D]").astype(np.int64) + day - 1  # since a Thursday
    return hour, (days + 3) % 7
