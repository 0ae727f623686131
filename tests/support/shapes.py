"""A small shape of a step."""

from cachedlrm.plan.step_bytes import StepShape
from cachedlrm.store.records import GroupShape, RecordLayout


def lookups(groups: tuple[GroupShape, ...], most: int = 2) -> tuple[tuple[int, ...], ...]:
    """As many lookups a bag in every table."""
    return tuple((most,) * len(group.table_rows) for group in groups)


STEP = StepShape(
    groups=(GroupShape((1000, 10, 5), RecordLayout(4, "adagrad")),),
    num_features=3,
    lookups_per_bag=((2, 2, 2),),
    mini_batch_size=20,
    mlp_bot=(3, 4),
    mlp_top=(10, 1),
    prefetch_depth=1,
    most_staging_rows=0,
)
