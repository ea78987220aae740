"""Loggers beside metrics.jsonl: each gets every step, resumes its run, and ends no training."""

import math
import sys
import types
from typing import ClassVar

import pytest

from entropy_rl.config.common import RunConfig
from entropy_rl.runs.jsonl import read_jsonl, write_jsonl
from entropy_rl.runs.loggers import build_loggers
from entropy_rl.runs.logging import RunLog
from entropy_rl.runs.stored import METRICS_FILE


def of(*loggers, **settings):
    return build_loggers(RunConfig("run", loggers=list(loggers), **settings))


def record(directory, loggers, last_step=0, steps=(1, 2)):
    directory.mkdir(parents=True, exist_ok=True)
    with RunLog(directory, last_step, loggers, {"seed": 3}) as log:
        for step in steps:
            log.metrics(step, {"reward": 0.5 * step})


class FakeRun:
    """A stand-in for a run of W&B or Trackio that records its calls."""

    def __init__(self, **settings):
        self.settings, self.logged, self.finished = settings, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture(params=["wandb", "trackio"])
def service(request, monkeypatch):
    """The name of a logger, and the runs of the stand-in for its package."""
    runs = []

    def init(**settings):
        runs.append(FakeRun(**settings))
        return runs[-1]

    monkeypatch.setitem(sys.modules, request.param, types.SimpleNamespace(init=init))
    return request.param, runs


def test_wandb_and_trackio_get_config_and_metrics(tmp_path, service):
    name, runs = service
    record(tmp_path, of({"name": name, "project": "p"}))
    (run,) = runs
    assert (run.settings["project"], run.settings["config"]) == ("p", {"seed": 3})
    assert run.logged == [(1, {"reward": 0.5}), (2, {"reward": 1.0})] and run.finished


def test_a_resumed_run_is_the_same_one_and_another_directory_is_another(tmp_path, service):
    name, runs = service
    first, other = tmp_path / "shaped" / "seed_0", tmp_path / "plain" / "seed_0"
    for directory in (first, other, first, first / ".." / "seed_0"):
        record(directory, of({"name": name, "project": "p"}))
    ids = [run.settings["id" if name == "wandb" else "name"] for run in runs]
    assert ids[0] == ids[2] == ids[3] != ids[1]
    assert {run.settings["resume"] for run in runs} == {"allow"}


class FakeClient:
    """An MlflowClient whose store lives as long as the class."""

    runs: ClassVar[dict] = {}  # tag -> metrics

    def __init__(self, tracking_uri):
        self.uri = tracking_uri

    def get_experiment_by_name(self, name):
        return None if name == "new" else types.SimpleNamespace(experiment_id="7")

    def create_experiment(self, name):
        return "8"

    def search_runs(self, places, query, max_results):
        tag = query.split("'")[1]
        info = types.SimpleNamespace(run_id=tag)
        return [types.SimpleNamespace(info=info)] if tag in self.runs else []

    def create_run(self, place, tags, run_name):
        (tag,) = tags.values()
        self.runs[tag] = []
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=tag))

    def log_param(self, run_id, name, value):
        assert (name, value) == ("seed", "3")

    def update_run(self, run_id, status):
        assert status == "RUNNING"

    def log_batch(self, run_id, metrics):
        self.runs[run_id] += [(m[0], m[1], m[3]) for m in metrics]

    def set_terminated(self, run_id):
        self.runs[run_id].append("end")


@pytest.fixture
def mlflow(monkeypatch):
    monkeypatch.setattr(FakeClient, "runs", {})
    entities = types.SimpleNamespace(Metric=lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=FakeClient))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return FakeClient.runs


def test_mlflow_gets_finite_metrics_with_names_that_it_allows_and_resumes(tmp_path, mlflow):
    loggers = of({"name": "mlflow", "experiment": "new"})
    with RunLog(tmp_path, 0, loggers, {"seed": 3}) as log:
        log.metrics(1, {"pass@1": 0.5, "time/step": 2.0, "entropy": math.nan})
    record(tmp_path, of({"name": "mlflow", "experiment": "old"}), last_step=1, steps=[2])
    (metrics,) = mlflow.values()
    assert metrics == [
        ("pass_1", 0.5, 1),
        ("time/step", 2.0, 1),
        "end",
        ("reward", 1.0, 2),
        "end",
    ]


def test_tensorboard_is_the_default_and_can_be_left_out(tmp_path):
    record(tmp_path / "a", build_loggers(RunConfig("run")))
    record(tmp_path / "b", of())
    assert list((tmp_path / "a" / "tensorboard").glob("events.*"))
    assert [path.name for path in (tmp_path / "b").iterdir()] == [METRICS_FILE]


def test_a_logger_of_ones_own_gets_its_arguments_and_the_run(tmp_path, monkeypatch):
    told = []

    class Mine:
        def __init__(self, run, prefix):
            told.append((run.name, run.last_step, run.config))
            self.prefix = prefix

        def metrics(self, step, values):
            told.append((self.prefix, step, values))

        def close(self):
            told.append("closed")

    def make(prefix: str):
        return lambda run: Mine(run, prefix)

    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(make=make))
    record(tmp_path / "r", of({"name": "mine:make", "prefix": "x"}), steps=[1])
    assert told == [("r", 0, {"seed": 3}), ("x", 1, {"reward": 0.5}), "closed"]


def test_a_logger_that_fails_is_dropped_with_a_warning_and_the_others_go_on(
    tmp_path, service, monkeypatch, caplog
):
    name, _ = service
    monkeypatch.setattr(FakeRun, "log", lambda self, values, step: 1 / (step - 2))
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(make=lambda: FakeLogger))
    record(tmp_path, of({"name": name, "project": "p"}, {"name": "mine:make"}), steps=(1, 2, 3))
    assert FakeLogger.steps == [1, 2, 3] and len(read_jsonl(tmp_path / METRICS_FILE)) == 3
    (warning,) = caplog.messages
    assert "division by zero" in warning and "no metrics from step 2 on" in warning
    FakeLogger.steps.clear()


def test_a_logger_that_does_not_start_ends_the_run_in_one_line(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(FakeLogger, "close", lambda self: closed.append(self))
    modules = types.SimpleNamespace(make=lambda: FakeLogger, bad=lambda: lambda run: 1 / 0)
    monkeypatch.setitem(sys.modules, "mine", modules)
    with pytest.raises(ValueError, match=r"^run\.loggers\[1\]: division by zero"):
        record(tmp_path, of({"name": "mine:make"}, {"name": "mine:bad"}), steps=())
    assert len(closed) == 1
    fake = types.SimpleNamespace(init=lambda **_: 1 / 0)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(ValueError, match=r"^run\.wandb_project: division by zero"):
        record(tmp_path, of({"name": "mine:make"}, wandb_project="project"), steps=())
    assert len(closed) == 2


def test_what_is_started_and_is_no_logger_ends_the_run_in_one_line(tmp_path, monkeypatch):
    for wrong in (lambda run: None, lambda run: print, lambda run: FakeLogger.metrics):
        module = types.SimpleNamespace(make=lambda wrong=wrong: wrong)
        monkeypatch.setitem(sys.modules, "mine", module)
        line = r"^run\.loggers\[0\]: must start a logger with methods metrics and close, got "
        with pytest.raises(ValueError, match=line):
            record(tmp_path, of({"name": "mine:make"}), steps=())


class FakeLogger:
    steps: ClassVar[list] = []

    def __init__(self, run):
        pass

    def metrics(self, step, values):
        self.steps.append(step)

    def close(self):
        pass


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"name": "tensorbord"}, r"run\.loggers\[0\]\.name: must be one of tensorboard, wandb, .*"),
        ({}, r"run\.loggers\[0\]\.name: must be one of .*, got None"),
        ({"name": "tensorboard", "x": 1}, r"run\.loggers\[0\]\.x: .*"),
        ({"name": "json:nothing"}, r"run\.loggers\[0\]\.name: cannot import .*"),
        ({"name": "json:dumps", "obj": 1}, r"run\.loggers\[0\]\.name: must return a function .*"),
        (
            {"name": "mlflow", "experiment": "e"},
            r"run\.loggers\[0\]: mlflow is not installed; `pip install 'mlflow-skinny\S* .*`, "
            "or leave it out",
        ),
        (
            {"name": "logs_to_nowhere:make"},
            r"run\.loggers\[0\]: nowhere is not installed; install it for logs_to_nowhere:make, or "
            "leave it out",
        ),
        ({"name": ["tensorboard"]}, r"run\.loggers\[0\]\.name: must be one of tensorboard, .*"),
        ({"name": "trackio"}, r"run\.loggers\[0\]\.project: must be given"),
    ],
)
def test_an_entry_that_cannot_work_is_one_line(spec, line, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)

    def make():
        import nowhere  # noqa: F401

    monkeypatch.setitem(sys.modules, "logs_to_nowhere", types.SimpleNamespace(make=make))
    with pytest.raises(ValueError, match=f"^{line}$"):
        of(spec)


def test_a_missing_wandb_names_the_field_and_the_way_out_and_leaves_the_records_alone(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    write_jsonl(tmp_path / METRICS_FILE, [{"step": 1}, {"step": 2}])
    with pytest.raises(
        ValueError, match=r"^run\.wandb_project: wandb is not installed; .*set null$"
    ):
        RunLog(tmp_path, 1, of(wandb_project="project"), {})
    assert len(read_jsonl(tmp_path / METRICS_FILE)) == 2
