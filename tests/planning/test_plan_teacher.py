"""The plan of a run with a teacher counts its parameters, its forward pass and its head."""

import dataclasses

import pytest
import yaml
from test_plan_lora import TINY, works
from tiny_runs import TRAIN

from entropy_rl.cli.parse import parse_config
from entropy_rl.config.plan import PlanConfig
from entropy_rl.planning import counting
from entropy_rl.planning.abstract import abstract_run
from entropy_rl.planning.devices import virtual_devices
from entropy_rl.planning.plan import make_plan
from entropy_rl.planning.shapes import SHAPES, find_architecture
from entropy_rl.planning.step import resident_bytes

# With other rows without a token than the policy, as models of one family have.
WIDE = dataclasses.replace(TINY, vocab_size=520, hidden_size=96, num_layers=3)
SAMPLED = {"advantage": [{"name": "on_policy_distillation"}], "teacher": {"path": "teacher"}}
TOP_K = {"advantage": None, "teacher": {"path": "teacher", "top_k": 8}}


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """(config, architecture) of a plan for one device."""
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setitem(SHAPES, "wide", WIDE)
    monkeypatch.chdir(tmp_path)

    def plan(changes):
        model = {"path": "nowhere", "compute_dtype": "bfloat16"}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(TRAIN | {"model": model} | changes))
        target = ["--shape", "tiny", "--teacher_shape", "wide", "--devices", "1", "--chip", "l4"]
        config = parse_config(PlanConfig, "plan", ["--config", "plan.yaml", *target])
        return config, find_architecture(config)

    return plan


@pytest.mark.parametrize("changes", [SAMPLED, TOP_K], ids=["sampled", "top_k"])
def test_a_teacher_is_kept_in_float32(planned, changes):
    run = abstract_run(*planned(changes), virtual_devices(1, "l4"))
    assert resident_bytes(run)["teacher"] == 4 * counting.parameters(WIDE)


def test_its_forward_pass_and_its_head_are_counted(planned):
    sampled, top_k = (works(*planned(changes)) for changes in (SAMPLED, TOP_K))
    tokens, responses = 16 * (16 + 12), 16 * 12
    pairs = 16 * 28 * 29 / 2 * 4 * 3 * TINY.head_dim * TINY.num_heads
    layers = 2 * 3 * counting.layer_weights(WIDE) * tokens
    forward = layers + 2 * 520 * 96 * responses + pairs
    assert sampled["teacher's log-probs"].flops == forward
    # In the loss: the teacher, and logits and two gradients of the policy's head.
    assert top_k["update"].flops == sampled["update"].flops + forward + 3 * 2 * 512 * 64 * responses
    assert "teacher's log-probs" not in top_k


@pytest.mark.slow
@pytest.mark.parametrize("changes", [SAMPLED, TOP_K], ids=["sampled", "top_k"])
def test_it_is_an_argument_of_the_program_that_reads_it_and_lies_beside_others(planned, changes):
    plan = make_plan(*planned(changes), virtual_devices(1, "l4"))
    phases = {phase.program.name: phase for phase in plan.step.phases}
    reads = "update" if changes is TOP_K else "teacher's log-probs"
    assert [name for name, phase in phases.items() if "teacher" not in phase.beside] == [reads]
    assert phases[reads].program.arguments > plan.resident["teacher"]


def test_a_shape_without_a_teacher_is_refused(planned):
    with pytest.raises(ValueError, match=r"^teacher_shape: must be null without teacher, got 'wi"):
        planned({})
