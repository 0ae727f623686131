"""Free memory where control groups limit it, against folders that look like the kernel's."""

from pathlib import Path
from typing import ClassVar

import psutil

from cachedlrm.base import machine as memory


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_version_2_limits_of_the_group_and_of_those_above(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    stat = "anon 5\ninactive_file 30\nactive_file 7\n"
    write(tmp_path / "fs" / "outer", {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": stat})
    inner = {"memory.max": "max\n", "memory.current": "100\n", "memory.stat": stat}
    write(tmp_path / "fs" / "outer" / "inner", inner)
    assert memory._free_in_cgroups(tmp_path / "fs", own) == [1000 - 900 + 30]
    write(tmp_path / "fs" / "outer" / "inner", {"memory.max": "120\n"})
    assert memory._free_in_cgroups(tmp_path / "fs", own) == [120 - 100 + 30, 130]


def test_version_1_has_a_tree_for_memory(tmp_path):
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/x\n4:memory:/job\n")
    files = {
        "memory.limit_in_bytes": "500\n",
        "memory.usage_in_bytes": "600\n",
        "memory.stat": "total_inactive_file 20\n",
    }
    write(tmp_path / "fs" / "memory" / "job", files)
    assert memory._free_in_cgroups(tmp_path / "fs", own) == [0]


def test_without_control_groups_the_machine_counts(tmp_path):
    assert memory._free_in_cgroups(tmp_path, tmp_path / "absent") == []
    assert 0 < memory.free_host_bytes() <= psutil.virtual_memory().total


def test_freed_memory_goes_back_where_the_c_library_can(monkeypatch):
    class Library:
        kept: ClassVar[list[int]] = []

        def malloc_trim(self, kept: int) -> None:
            self.kept.append(kept)

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Library())
    memory.give_back_freed_memory()
    assert Library.kept == [0]
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.give_back_freed_memory()
