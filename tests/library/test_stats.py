"""What a cache did and holds: a line, a table, scalars."""

from rich.console import Console

from support.cached_collections import Model, batches, make_collection, train


class Writer:
    """What of a SummaryWriter is needed."""

    def __init__(self) -> None:
        self.scalars: dict[str, tuple[float, int]] = {}

    def add_scalar(self, tag, scalar_value, global_step) -> None:
        self.scalars[tag] = (scalar_value, global_step)


def test_one_line_one_table_and_scalars():
    with make_collection(report_min=True, policy="lookahead", lookahead=30) as collection:
        train(Model(collection), collection.prefetch(batches(), lambda batch: batch.features))
        stats, counters = collection.stats, collection.counters
        assert stats.counters is counters
        assert stats.steps == 30
        assert stats.moved_of_min == 1.0  # the window is the whole stream
        assert stats.resident_rows <= stats.slots == 200
        assert str(stats).startswith(
            f"step 30, {counters.hit_ratio:.1%} hits, {counters.moved_rows:,} rows in, 1.00 x MIN"
        )
        assert "\n" not in str(stats)
        console = Console(width=80)
        with console.capture() as shown:
            console.print(stats)
        assert f"{counters.evicted_rows:,}" in shown.get()
        assert "host memory" in shown.get()
        writer = Writer()
        stats.log(writer)
        assert writer.scalars["cache/hit_ratio"] == (counters.hit_ratio, 30)
        assert writer.scalars["memory/device_bytes"][0] == stats.device_bytes > 0
        stats.log(writer, 7)
        assert writer.scalars["cache/moved_of_min"] == (1.0, 7)
