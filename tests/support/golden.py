"""``python tests/support/golden.py CHECKOUT``: adds a run on this processor to every file of ``tests/golden``.

CHECKOUT is a folder with facebookresearch/dlrm (``git checkout 090956e``). The ``args`` of each file are given to its
``dlrm_s_pytorch.py``, within this process and with one thread. Runs on other processors stay.
"""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.json"))


def processor() -> str:
    """Maker and vector width, for example "GenuineIntel AVX512".

    MKL and torch choose their kernels by these two. Other kernels add the same numbers in another order, so that the
    last bits of a loss differ.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    maker = next((line.split()[-1] for line in lines if line.startswith("vendor_id")), "unknown")
    return f"{maker} {torch.backends.cpu.get_cpu_capability()}"


def digest(parameter: torch.Tensor) -> dict[str, Any]:
    """Everything a golden file keeps of a final parameter."""
    values = parameter.detach().double().numpy()
    return {"sum": values.sum(), "abs_sum": abs(values).sum(), "first": parameter.detach().ravel()[:3].tolist()}


def import_reference(checkout: Path) -> Any:
    """Its program as a module. Two packages that it needs for its logs only are replaced by empty ones."""
    sys.path.insert(0, str(checkout))
    silent = SimpleNamespace(add_scalar=lambda *_: None)
    for name, needed in (("tqdm", "tqdm"), ("torch.utils.tensorboard", "SummaryWriter")):
        sys.modules[name] = ModuleType(name)
        setattr(sys.modules[name], needed, lambda _: silent)
    program = importlib.import_module("dlrm_s_pytorch")
    del sys.modules["tqdm"], sys.modules["torch.utils.tensorboard"]
    return program


def reference_run(program: Any, arguments: list[str]) -> dict[str, Any]:
    """The loss of every iteration and the final parameters."""
    losses: list[float] = []
    measure = program.loss_fn_wrap

    def remember(*given: Any) -> torch.Tensor:
        loss = measure(*given)
        losses.append(loss.item())
        return loss

    program.loss_fn_wrap = remember
    sys.argv = ["dlrm_s_pytorch.py", *arguments]
    program.run()
    program.loss_fn_wrap = measure
    return {"losses": losses, "final": {name: digest(value) for name, value in program.dlrm.state_dict().items()}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    reference = import_reference(Path(sys.argv[1]).resolve())
    os.chdir(tempfile.mkdtemp())  # it writes files where it runs
    for path in GOLDEN:
        golden = json.loads(path.read_text())
        golden["runs"][processor()] = reference_run(reference, golden["args"])
        path.write_text(json.dumps(golden, indent=1) + "\n")
