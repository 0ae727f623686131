"""One run is one process."""

from collections.abc import Mapping

from cachedlrm.base.errors import UserError


def refuse_several_processes(environment: Mapping[str, str]) -> None:
    """Ends what ``torchrun`` started more than once: every process would train the same run in the same directory.

    Args:
        environment: of this process.

    Raises:
        UserError: it is one of several.
    """
    count = environment.get("WORLD_SIZE", "1")
    if "RANK" in environment and count.isdecimal() and int(count) > 1:
        raise UserError(
            f"torchrun started {count} processes and a run is one: start python -m cachedlrm.train without torchrun; "
            "for more than one machine holds, go on in TorchRec (python -m cachedlrm.export --format torchrec)"
        )
