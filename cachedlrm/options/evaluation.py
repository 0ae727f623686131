"""Options of evaluations: what they measure, and what a run does about it."""

from dataclasses import dataclass
from typing import Literal

from cachedlrm.options.types import Area, Flag, MayChange, Positive, option_group

Monitor = Literal["auc", "logloss"]
"""By which an evaluation is better than another: the higher AUC, or the lower loss."""


@option_group("Evaluation", 3)
@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluations on held-out samples; --test-freq says how often."""

    monitor: Monitor = "auc"
    """What makes an evaluation the best: the highest AUC or the lowest logloss (cross-entropy)."""
    stop_after: MayChange[Positive | None] = None
    """End the run after so many evaluations without a better one. Default: go on."""
    stop_at_auc: MayChange[Area | None] = None
    """End the run at the first evaluation with this AUC or a higher one. Default: go on."""
    keep_best: Flag = False
    """Leave the rows, optimizer state and layers of the best evaluation, not of the last step: in final.safetensors
    and the models that are saved. Each better evaluation writes all touched rows."""
    gauc_table: MayChange[str | None] = None
    """Also measure AUC within the samples of each id of this one-hot column, weighted by samples: the column's name,
    or its number from 0."""
