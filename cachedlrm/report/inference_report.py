"""What ``--inference-only`` measured, for ``report.json`` and ``report.md``."""

from dataclasses import asdict, dataclass

from cachedlrm.base.units import finite, format_bytes


@dataclass(frozen=True)
class ServedModel:
    """A model and its predictions of the held-out samples.

    Attributes:
        accuracy: share of samples whose rounded prediction is their label.
        auc: None unless labels are 0 and 1, both.
        loss: mean.
        samples_per_s: rate of predictions, without reading the data.
        embedding_bytes: of the tables, with pooling weights.
        mlp_bytes: of the dense part.
    """

    accuracy: float
    auc: float | None
    loss: float
    samples_per_s: float
    embedding_bytes: int
    mlp_bytes: int


@dataclass(frozen=True)
class InferenceReport:
    """Held-out samples, and the model before and, if it was asked for, after quantisation.

    Attributes:
        samples: evaluated.
        mlp_bits: bits of a weight of the MLPs, served.
        embedding_bits: bits of an element of the tables, served.
        before: as loaded or initialised.
        after: quantised; None: it was not asked for.
    """

    samples: int
    mlp_bits: int
    embedding_bits: int
    before: ServedModel
    after: ServedModel | None

    @property
    def served(self) -> ServedModel:
        """The model that predictions are of."""
        return self.after or self.before

    def as_json(self) -> dict[str, object]:
        """The section of ``report.json``."""
        return {
            "samples": self.samples,
            "quantize_mlp_with_bit": self.mlp_bits,
            "quantize_emb_with_bit": self.embedding_bits,
            "before": _as_json(self.before),
            "after": _as_json(self.after) if self.after else None,
        }

    def summary(self) -> str:
        """One line for people."""
        served = self.served
        auc = "" if served.auc is None else f", AUC {served.auc:.4f}"
        return (
            f"{self.samples:,} held-out samples, {served.samples_per_s:,.0f} samples/s, accuracy {served.accuracy:.3%}"
            f"{auc}, loss {served.loss:.5f}"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Lines of the table of ``report.md``, the header first."""
        models = {"before quantisation": self.before, "after": self.after} if self.after else {"": self.before}
        columns = [
            (
                name,
                f"{model.accuracy:.3%}",
                "-" if model.auc is None else f"{model.auc:.5f}",
                f"{model.loss:.5f}",
                f"{model.samples_per_s:,.0f}",
                format_bytes(model.embedding_bytes),
                format_bytes(model.mlp_bytes),
            )
            for name, model in models.items()
        ]
        titles = (f"{self.samples:,} samples", "accuracy", "AUC", "loss", "samples/s", "embeddings", "MLPs")
        return list(zip(titles, *columns, strict=True))


def _as_json(model: ServedModel) -> dict[str, object]:
    return {name: finite(value) if isinstance(value, float) else value for name, value in asdict(model).items()}
