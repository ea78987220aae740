"""What runs leave on disk, read back and compared."""

import contextlib
import json
import platform
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jaxlib
import orbax.checkpoint as ocp
from tiny_runs import ROOT, TRAIN

from entropy_rl.config.renames import current_metrics

STEPS = TRAIN["steps"]


def state_of(directory: Path, step: int = STEPS) -> Any:
    """Parameters, optimizer state and counters of a checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.device_get(
            checkpointer.restore((directory / "checkpoints" / str(step) / "state").resolve())
        )


def lines_of(path: Path) -> list[dict]:
    """The rows of a JSONL file without what is measured with a clock."""
    if path.name == "samples.jsonl" and not path.exists():
        return []  # an SFT run has none
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: v for name, v in row.items() if not name.startswith("time/")} for row in rows]


def undocumented_metrics(directory: Path) -> set[str]:
    """Names in the metrics of all runs below a directory that docs/metrics.md does not have."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \|", page, flags=re.M)
    names = "|".join(
        re.sub(r"\\\*|[A-Z]{3,}", ".+", re.escape(name))
        for row in rows
        for name in re.findall(r"`([^`]+)`", row)
    )
    found = set()
    for path in directory.rglob("metrics.jsonl"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # cut or damaged by a test
                found |= set(current_metrics(json.loads(line)))
    return {name for name in found - {"step"} if not re.fullmatch(names, name)}


def machine() -> str:
    """What the last bits of a float on a CPU depend on: jaxlib and the vector instructions."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().partition("flags")[2].partition("\n")[0].split() if cpu.exists() else []
    vectors = sorted({flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sse"))})
    return " ".join([platform.machine(), f"jaxlib {jaxlib.version.__version__}", *vectors])


def assert_same_run(one: Path, other: Path, step: int = STEPS, least: int = 31) -> None:
    """Compare two runs to the bit; a state of fewer than `least` arrays would be no comparison."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert lines_of(one / name) == lines_of(other / name)
    a, b = (
        jax.tree_util.tree_leaves_with_path(state_of(directory, step)) for directory in (one, other)
    )
    assert [path for path, _ in a] == [path for path, _ in b] and len(a) >= least
    for (path, x), (_, y) in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), path


NUMBERS = ("reward", "length", "entropy", "grad_norm", "loss", "bonus_share")


def metrics_of(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [[row[name] for name in NUMBERS] for row in rows]


def groups_of(rows: list[dict], group_size: int) -> dict[tuple[int, int, int], list[dict]]:
    """The rows of samples.jsonl by step, problem, and which of its groups."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["step"], row["problem"], row["sample"] // group_size].append(row)
    return groups
