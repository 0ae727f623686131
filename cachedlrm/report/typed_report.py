"""``report.json`` with its types: what pages and comparisons are made of."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from cachedlrm.cache.counters import CacheCounters, TableCounters
from cachedlrm.report.inference_report import InferenceReport, ServedModel

_LARGEST = 2**63


@dataclass(frozen=True)
class _Table:
    """An entry of ``tables``."""

    name: str
    rows: int
    lookups: int
    hit_ratio: float | None
    working_set_rows: int
    touched_rows: int


@dataclass(frozen=True)
class CurvePoint:
    """An entry of ``miss_ratio_curve``."""

    cache_slots: int
    hit_ratio: float
    moved_bytes_per_step: float


@dataclass(frozen=True)
class Prediction:
    """``prediction``: what was expected before the run."""

    hit_ratio: float | None
    fetched_rows_per_step: float | None
    first_touch_rows_per_step: float | None
    moved_bytes_per_step: float | None
    samples_per_s_at_most: float | None
    sampled_batches: int
    batches: int


@dataclass(frozen=True)
class _Served:
    """A model of ``inference``."""

    accuracy: float | None
    auc: float | None
    loss: float | None
    samples_per_s: float
    embedding_bytes: int
    mlp_bytes: int

    def model(self) -> ServedModel:
        values = dataclasses.asdict(self)
        unknown = float("nan")  # which JSON does not have
        return ServedModel(**{**values, **{key: unknown for key in ("accuracy", "loss") if values[key] is None}})


@dataclass(frozen=True)
class _Inference:
    """``inference``."""

    samples: int
    quantize_mlp_with_bit: int
    quantize_emb_with_bit: int
    before: _Served
    after: _Served | None


@dataclass(frozen=True)
class Report:
    """``report.json``; see `cachedlrm.report.totals.build_report` for what its keys mean.

    Keys with a value here are missing in reports of earlier versions.
    """

    steps: int
    samples: int
    samples_per_s: float | None
    training_s: float
    loss_last: float | None
    loss_mean: float | None
    auc: float | None
    table_rows: int
    cache_slots: int
    temporary_slots: int
    record_bytes: int
    table_bytes: int
    lookups: int
    hit_ratio: float
    working_set_rows: int
    unique_hit_ratio: float
    first_touch_rows: int
    fetched_rows: int
    evicted_rows: int
    written_back_rows: int
    fetched_bytes: int
    written_back_bytes: int
    moved_rows_min: int | None
    device_peak_bytes: int
    device_limit_bytes: int
    device_bytes_breakdown: dict[str, int]
    host_peak_bytes: int
    host_store_bytes: int
    mapped_peak_bytes: int
    phase_ms: dict[str, float]
    environment: dict[str, str | int | None]
    accuracy: float | None = None
    host_limit_bytes: int | None = None
    tables: tuple[_Table, ...] = ()
    miss_ratio_curve: tuple[CurvePoint, ...] | None = None
    prediction: Prediction | None = None
    inference: _Inference | None = None

    @property
    def counters(self) -> CacheCounters:
        """The cache's work."""
        return CacheCounters(
            lookups=self.lookups,
            hit_lookups=round(self.hit_ratio * self.lookups),
            working_set_rows=self.working_set_rows,
            resident_rows=round(self.unique_hit_ratio * self.working_set_rows),
            first_touch_rows=self.first_touch_rows,
            fetched_rows=self.fetched_rows,
            evicted_rows=self.evicted_rows,
            written_back_rows=self.written_back_rows,
            fetched_bytes=self.fetched_bytes,
            written_back_bytes=self.written_back_bytes,
            moved_rows_min=self.moved_rows_min or 0,
        )

    @property
    def step_ms(self) -> float:
        """Milliseconds that a step of training took."""
        return self.training_s * 1e3 / max(1, self.steps)

    @property
    def moved_bytes_per_step(self) -> float:
        """Bytes of rows fetched and written back."""
        return (self.fetched_bytes + self.written_back_bytes) / max(1, self.steps)

    @property
    def table_counters(self) -> tuple[TableCounters, ...]:
        """The cache's work table by table."""
        return tuple(
            TableCounters(
                table.name,
                table.rows,
                table.lookups,
                round((table.hit_ratio or 0.0) * table.lookups),
                table.working_set_rows,
                table.touched_rows,
            )
            for table in self.tables
        )

    @property
    def served(self) -> InferenceReport | None:
        """What ``--inference-only`` measured."""
        if (inference := self.inference) is None:
            return None
        return InferenceReport(
            inference.samples,
            inference.quantize_mlp_with_bit,
            inference.quantize_emb_with_bit,
            inference.before.model(),
            inference.after.model() if inference.after else None,
        )


def parse_report(value: object) -> Report:
    """The object of ``report.json``.

    Raises:
        ValueError: it is none; names the key.
    """
    report = _read(Report, value, "")
    assert isinstance(report, Report)
    return report


def _read(kind: Any, value: object, key: str) -> Any:
    """``value`` as the annotation ``kind`` says: numbers, texts, None, and dataclasses, mappings and tuples of them.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(kind, UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        *others, last = [one for one in get_args(kind) if one is not type(None)]
        kind = next((one for one in others if isinstance(value, one)), last)
    if _is_scalar(kind, value):
        return value
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: _read(get_args(kind)[1], entry, f"{key}.{name}") for name, entry in value.items()}
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_read(get_args(kind)[0], entry, f"{key}[{number}]") for number, entry in enumerate(value))
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _read_dataclass(kind, value, key)
    words = {int: "a whole number from 0 on", float: "a number", str: "a text"}
    raise ValueError(f"{key or 'it'} is not {words.get(kind, 'a list' if get_origin(kind) is tuple else 'an object')}")


def _is_scalar(kind: Any, value: object) -> bool:
    """Whether ``value`` is what the annotation ``kind`` says: a number that is finite, a count, or a text."""
    if kind is int:
        return type(value) is int and 0 <= value < _LARGEST
    if kind is float:
        return isinstance(value, int | float) and type(value) is not bool and abs(value) < _LARGEST
    return kind is str and isinstance(value, str)


def _read_dataclass(kind: Any, value: Mapping[str, object], key: str) -> Any:
    """A dataclass from an object; keys that it does not know are left out."""
    types, values = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        path = f"{key}.{field.name}" if key else field.name
        if field.name in value:
            values[field.name] = _read(types[field.name], value[field.name], path)
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{path} is missing")
    return kind(**values)
