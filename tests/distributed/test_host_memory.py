"""What does not fit into the memory of the machine is refused in one line, before it is made."""

import re
from pathlib import Path

import pytest

from entropy_rl.cli.main import main
from entropy_rl.distributed import host_memory

MEMINFO = "MemTotal:  900 kB\nMemAvailable:  500 kB\nSwapFree:  100 kB\nHugePages_Total:  0\n"


@pytest.fixture
def files(monkeypatch):
    """What the kernel says, by path."""
    files = {"/proc/meminfo": MEMINFO}

    def read(path, *_, **__):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    return files


def test_free_memory_is_that_of_the_machine_or_of_the_container(files):
    assert host_memory.free_bytes() == 600 * 1024
    group = "/sys/fs/cgroup/memory."
    files |= {f"{group}max": "max\n", f"{group}stat": "anon 7\n", f"{group}current": "90\n"}
    assert host_memory.free_bytes() == 600 * 1024
    # What the system can drop is free.
    files |= {f"{group}max": "5000\n", f"{group}stat": "anon 70\ninactive_file 20\n"}
    assert host_memory.free_bytes() == 5000 - (90 - 20)
    del files["/proc/meminfo"]
    assert host_memory.free_bytes() is None


def test_the_memory_of_the_process_is_known():
    assert 50 * 2**20 < host_memory.process_bytes() < 2**36


@pytest.mark.parametrize(
    ("verb", "share", "what"),
    [
        ("train", 0.1, "the weights"),
        ("train", 1, "gradient and optimizer state"),
        ("sft", 1, "gradient and optimizer state"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_in_one_line(
    verb, share, what, here, monkeypatch, capsys, tmp_path
):
    weights = (here / "model" / "model.safetensors").stat().st_size
    monkeypatch.setattr(host_memory, "free_bytes", lambda: int(share * weights))
    arguments = ["--config", f"{verb}.yaml", "--run.directory", str(tmp_path / "run")]
    assert main([verb, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = (
        rf"entropy-rl {verb}: free memory of the machine: must be at least ([\d.e-]+) GB for "
        rf"{what}, got ([\d.e-]+) GB \(`entropy-rl plan` shows what a run takes\)"
    )
    needed, free = map(float, re.fullmatch(said, line).groups())
    assert needed > free == pytest.approx(share * weights / 1e9, rel=0.01)
    assert not (tmp_path / "run").exists()
