"""How good a model's predictions of held-out samples are, and which of a run's evaluations was the best."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import msgspec

from cachedlrm.options.evaluation import Monitor

Step = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Figures of predictions beside labels. None: not defined for these labels.

    Attributes:
        auc: area under the ROC curve; defined if both labels, 0 and 1, occur and no other.
        accuracy: share of samples whose rounded prediction is their label, as facebookresearch/dlrm counts.
        logloss: mean cross-entropy in nats; see `cachedlrm.run.scoring`.
        normalized_entropy: that, divided by the loss of predicting the mean label for every sample; 1 and more is
            worse than that.
        calibration: mean prediction divided by mean label; 1 is right.
        average_precision: mean precision over the positive samples' ranks; defined where ``auc`` is.
        gauc: AUC within the samples of each id of ``--gauc-table``, weighted by samples.
    """

    auc: float | None = None
    accuracy: float | None = None
    logloss: float | None = None
    normalized_entropy: float | None = None
    calibration: float | None = None
    average_precision: float | None = None
    gauc: float | None = None


SCORES = tuple(field.name for field in fields(Scores))


@dataclass(frozen=True, kw_only=True)
class Evaluated(Scores):
    """An evaluation of a run.

    Attributes:
        step: steps trained by then.
    """

    step: Step


@dataclass(frozen=True)
class CalibrationBin:
    """Samples with neighbouring predictions.

    Attributes:
        predicted: mean prediction.
        observed: mean label.
        samples: how many.
    """

    predicted: float
    observed: float
    samples: Step


def best_of(evaluations: Sequence[Evaluated], monitor: Monitor) -> Evaluated | None:
    """The first of the best evaluations; None where none has the figure."""
    known = [one for one in evaluations if getattr(one, monitor) is not None]
    if not known:
        return None
    choose = max if monitor == "auc" else min
    best: Evaluated = choose(known, key=lambda one: getattr(one, monitor))
    return best


def num_without_improvement(evaluations: Sequence[Evaluated], monitor: Monitor) -> int:
    """Evaluations after the best one."""
    best = best_of(evaluations, monitor)
    return 0 if best is None else len(evaluations) - 1 - evaluations.index(best)
