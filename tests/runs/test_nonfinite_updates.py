"""An update whose gradient is not finite is not applied, is kept, and can be looked into."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from policies import table_policy
from tiny_runs import TRAIN, make_workspace, write_yaml
from update_problem import SHAPED, G, P, V, make_data

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.commands.debug_update import _policy
from entropy_rl.config.train import TrainConfig
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.losses.loss import Loss
from entropy_rl.runs.nonfinite_updates import NonfiniteUpdates, read_nonfinite_update
from entropy_rl.types import TrainState

SPOIL = '''
import jax.numpy as jnp


def spoil():
    """NaN for the rows of a group with exactly one reward of 1, which occurs in some steps."""
    def transform(advantages, stats):
        lonely = (advantages.reshape(-1, 4) > 1).sum(1, keepdims=True) == 1
        return jnp.where(jnp.repeat(lonely, 4, axis=0), jnp.nan, advantages)
    return transform
'''


def test_parameters_and_optimizer_are_those_from_before(key):
    policy, optimizer = table_policy(V), optax.adamw(1e-2)
    update = make_update(policy, SHAPED, optimizer)
    state, _ = update(init_state(policy.init(key), optimizer), make_data())
    before = jax.tree.map(np.array, (state.params, state.opt_state))
    data = make_data(1)
    state, metrics = update(
        state, data.replace(old_log_probs=data.old_log_probs.at[5, 0].set(np.nan))
    )
    assert not np.isfinite(metrics["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)
    state, metrics = update(state, data)
    assert np.isfinite(metrics["grad_norm"]) and int(state.updates) == 3


def test_a_disk_without_room_for_an_update_is_told_in_a_line(key, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 10_000})
    monkeypatch.setattr("entropy_rl.runs.checkpoint.shutil.disk_usage", lambda path: usage)
    state = init_state(table_policy(V).init(key), optax.sgd(0.1))
    with pytest.raises(
        OSError, match=r"no room for an update that was not applied: it takes 0.001\d+ GB, free"
    ):
        NonfiniteUpdates(tmp_path, limit=3).keep(state, make_data())
    assert not list((tmp_path / "nonfinite_updates").glob("step_?_update_?"))


def test_a_recorded_update_has_every_array_of_its_mini_batch(key, tmp_path):
    state = init_state(table_policy(V).init(key), optax.sgd(0.1))
    data = make_data()
    data = data.replace(extras={"mine": data.old_log_probs * 2})
    NonfiniteUpdates(tmp_path, limit=3).keep(state, data)
    (path,) = (tmp_path / "nonfinite_updates").glob("step_*")
    params, batch = read_nonfinite_update(path, jax.eval_shape(table_policy(V).init, key))
    jax.tree.map(np.testing.assert_array_equal, (params, batch), (state.params, data))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "spoil", raising=False)  # another test's, in its directory
    make_workspace(tmp_path)
    (tmp_path / "spoil.py").write_text(SPOIL)
    advantage = [TRAIN["advantage"][0], {"name": "spoil:spoil"}]
    loss = {"entropy_coef": {"name": "adaptive_entropy"}}  # a replay needs what was new_controller
    write_yaml(tmp_path / "spoiled.yaml", TRAIN | {"advantage": advantage, "loss": loss})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_run_keeps_what_went_wrong_goes_on_and_stops_at_the_limit(here, capsys, caplog):
    train = [
        "train",
        "--config",
        "spoiled.yaml",
        "--steps",
        "12",
        "--batching.max_nonfinite_updates",
    ]
    caplog.clear()
    assert main([*train, "2"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    (first,) = (line for line in caplog.messages if "was not applied" in line)
    names = sorted(path.name for path in (here / "run" / "nonfinite_updates").iterdir())
    assert len(names) == 2 and all(re.fullmatch(r"step_\d+_update_\d+", name) for name in names)
    assert error.startswith(
        "entropy-rl train: run/nonfinite_updates holds 2 updates whose gradient was not finite"
    )
    assert any(
        f"see `entropy-rl debug-update run/nonfinite_updates/{name}`" in error for name in names
    )
    # The first one is said when it happens.
    assert re.fullmatch(
        r"(step_\d+_update_\d+) was not applied: its gradient is not finite; the run "
        r"stops at 2 such updates \(batching.max_nonfinite_updates\); see `entropy-rl debug-update "
        r"run/nonfinite_updates/\1`",
        first,
    )

    # Until they are gone it does not start.
    assert main([*train, "2"]) == 2
    assert "holds 2 updates that were not applied; look at them with" in capsys.readouterr().err

    # With more of them allowed it goes on, and ends; each is one of the figures of its step.
    assert main([*train, "99"]) == 0
    rows = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    kept = list((here / "run" / "nonfinite_updates").iterdir())
    assert sum(row["nonfinite_updates"] for row in rows) == len(kept) >= 2
    assert any(row["nonfinite_updates"] == 0 for row in rows)
    # A step with an update that was applied has its figures.
    assert all(row["grad_norm"] is not None for row in rows if row["nonfinite_updates"] < 2)

    capsys.readouterr()
    assert main(["debug-update", str(kept[0])]) == 0
    out = capsys.readouterr().out
    checks = ["parameters: finite", "the recorded batch: finite", "the forward pass: finite"]
    assert "\n".join([*checks, "metrics: not finite"]) in out
    assert "the gradient: not finite in" in out and "['embed_tokens']['embedding']: " in out


@pytest.mark.slow
def test_an_update_on_kept_rows_is_replayed_without_a_baseline(here, capsys):
    replay = {"name": "uec_replay"}
    write_yaml(here / "train.yaml", TRAIN | {"replay": replay, "steps": 0})
    assert main(["train", "--config", "train.yaml"]) == 0
    config = parse_config(TrainConfig, "train", ["--config", "train.yaml"])
    # Their rewards are advantages; as rewards that are all alike these would teach nothing.
    data = make_data().replace(rewards=jnp.ones(P * G))
    norms = {}
    for kind in ("update", "replay"):
        init, _, gradient = _policy(config, here / "run", here / f"step_1_{kind}_1", Loss())
        _, metrics = gradient(init(jax.random.key(0)), data)
        norms[kind] = metrics["grad_norm"]
    assert norms["update"] == 0 < norms["replay"]

    params = init(jax.random.key(0))
    state = TrainState(params, opt_state=None, step=jnp.int32(0), updates=jnp.int32(1))
    NonfiniteUpdates(here / "run", limit=3).keep_of_replay(state, data)
    assert main(["debug-update", "run/nonfinite_updates/step_1_replay_1"]) == 0
    assert "the gradient: finite\nthe gradient is finite here" in capsys.readouterr().out


@pytest.mark.parametrize("dump", ["nowhere", "."])
def test_what_is_no_update_is_refused(here, capsys, dump):
    assert main(["debug-update", dump]) == 2
    assert "dump: must be RUN/nonfinite_updates/NAME" in capsys.readouterr().err
