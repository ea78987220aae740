"""The plan of a LoRA run counts frozen parameters once, and moments of the adapter alone."""

import jax
import pytest
import yaml
from tiny_runs import TRAIN

from entropy_rl.cli.parse import parse_config
from entropy_rl.config.lora import LORA_TARGETS
from entropy_rl.config.plan import PlanConfig
from entropy_rl.models import DecoderConfig, make_policy
from entropy_rl.models.lora import LoraSpec, count_parameters
from entropy_rl.planning import counting
from entropy_rl.planning.abstract import abstract_run
from entropy_rl.planning.devices import virtual_devices
from entropy_rl.planning.estimate import Layout, estimate
from entropy_rl.planning.plan import make_plan
from entropy_rl.planning.shapes import SHAPES, find_architecture
from entropy_rl.planning.step import resident_bytes
from entropy_rl.rollout.batching import DecodingPlan

TINY = DecoderConfig(
    *(512, 64, 128, 2, 4, 2, 16, 1e4, 1e-6),
    qkv_bias=True,
    qk_norm=False,
    tie_embeddings=True,
)
LORA = {"rank": 4, "alpha": 8.0, "base_dtype": "bfloat16"}
# In and out of q, k, v, o, gate, up and down, times rank and layers.
ADAPTER = 2 * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
BASE = sum(
    x.size for x in jax.tree.leaves(jax.eval_shape(make_policy(TINY).init, jax.random.key(0)))
)
WORK = DecodingPlan("refill", 16, None)


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """(config, architecture) of a plan for one device, with some changes of a LoRA run."""
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.chdir(tmp_path)

    def plan(**changes):
        model = {"path": "nowhere", "compute_dtype": "bfloat16", "lora": LORA}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(TRAIN | {"model": model} | changes))
        target = ["--shape", "tiny", "--devices", "1", "--chip", "l4"]
        config = parse_config(PlanConfig, "plan", ["--config", "plan.yaml", *target])
        return config, find_architecture(config)

    return plan


def works(config, architecture):
    """Phase -> its work on one chip."""
    one = Layout(data=1, fsdp=1, tensor=1, local_chips=1, local_prompts=config.rollout.prompts)
    return {w.name: w for w in estimate(config, architecture, one, WORK, 12, None, 1.0)}


def test_the_numbers_of_an_adapter_are_those_counted_by_hand():
    assert count_parameters(LoraSpec(4, 8.0, False, LORA_TARGETS), TINY) == ADAPTER
    few = LoraSpec(4, 8.0, False, ("q_proj", "down_proj"))
    assert count_parameters(few, TINY) == 2 * 4 * (128 + 192)


def test_a_lora_run_keeps_one_base_and_the_moments_of_the_adapter(planned):
    config, architecture = planned(loss={"kl_coef": 0.1})
    resident = resident_bytes(abstract_run(config, architecture, virtual_devices(1, "l4")))
    assert resident["parameters"] == 2 * BASE + 4 * ADAPTER
    assert resident["optimizer state"] == 2 * 4 * ADAPTER + 8  # and two counts
    assert resident["reference parameters"] == 4 * ADAPTER  # its base is that of the policy


# Bytes of the kernels of both layers, and of their scales: of 512 columns, or of 576 blocks.
@pytest.mark.parametrize(
    ("dtype", "kernels"), [("int8", 73728 + 2 * 4 * 512), ("nf4", 73728 / 2 + 2 * 4 * 576)]
)
def test_a_quantized_base_is_counted_as_it_is_stored(planned, dtype, kernels):
    lora = LORA | {"base_dtype": dtype}
    config, architecture = planned(model={"path": "nowhere", "lora": lora})
    resident = resident_bytes(abstract_run(config, architecture, virtual_devices(1, "l4")))
    assert resident["parameters"] == 2 * (BASE - 73728) + kernels + 4 * ADAPTER


def test_an_update_of_an_adapter_saves_the_gradients_of_the_frozen_products(planned):
    config, architecture = planned()
    lora, dense = works(config, architecture), works(config, architecture._replace(lora=None))
    rows, tokens = 16, 16 * (16 + 12)
    products = 2 * (2 * counting.layer_weights(TINY) * tokens + 512 * 64 * rows * 12)
    assert lora["update"].flops == dense["update"].flops - products + 3 * 2 * ADAPTER * tokens
    assert lora["optimizer"].bytes == 2 * counting.optimizer_bytes(ADAPTER, config.optimizer)
    of_all = counting.optimizer_bytes(counting.parameters(TINY), config.optimizer)
    assert dense["optimizer"].bytes == 2 * of_all


@pytest.mark.parametrize(
    ("dtype", "kernel", "other"),
    [("float32", 4, 4), ("bfloat16", 2, 2), ("int8", 1, 2), ("nf4", 0.5625, 2)],
)
def test_a_frozen_base_is_read_as_it_is_stored(planned, dtype, kernel, other):
    model = {"path": "nowhere", "compute_dtype": "bfloat16", "lora": LORA | {"base_dtype": dtype}}
    found = works(*planned(model=model))
    kernels, others = 2 * counting.layer_weights(TINY), counting.parameters(TINY)
    others -= kernels
    decoded = min(kernel, 2) * kernels + 2 * others
    assert found["weight sync"].bytes == kernel * kernels + other * others + decoded
    # A pass reads a base of float32 as the copy in bfloat16, gradients are those of the adapter.
    count = 16 * (16 + 12) / TRAIN["batching"]["max_tokens_per_micro_batch"]
    assert found["update"].bytes == pytest.approx((3 * decoded + 2 * 4 * ADAPTER) * count)
    # Decoding a quantized base reads codes and scales: fewer bytes than in bfloat16.
    saved = works(*planned())["decode"].bytes - found["decode"].bytes
    assert saved == pytest.approx((2 - min(kernel, 2)) * kernels * 11)  # in each of the steps


def test_runs_that_train_together_share_a_base_and_a_rollout(planned):
    together = {"run": TRAIN["run"] | {"max_to_keep": 2}}
    (alone, architecture), (three, _) = (planned(stacked=k, **together) for k in (1, 3))
    one, other = (
        resident_bytes(abstract_run(config, architecture, virtual_devices(1, "l4")))
        for config in (alone, three)
    )
    # An adapter and its moments, with two counts, are those of a run.
    assert other.pop("the other runs") == 2 * (3 * 4 * ADAPTER + 8)
    decoding = other.pop("decoding parameters") - one.pop("decoding parameters")
    assert 2 * 2 * ADAPTER < decoding < 2 * 2 * 3 * ADAPTER  # fused ones are block-diagonal
    assert one == other
    of_one = works(alone, architecture)
    layout = Layout(1, 1, 1, local_chips=1, local_prompts=three.rollout.prompts, stacked=3)
    slots = WORK._replace(slots=3 * WORK.slots)
    of_three = estimate(three, architecture, layout, slots, 12, None, 1.0)
    for work in of_three:
        once = work.name == "weight sync"
        assert work.flops == pytest.approx((1 if once else 3) * of_one[work.name].flops)
        weights_are_read_once = work.name in ("weight sync", "prefill", "decode")
        assert (work.bytes < 3 * of_one[work.name].bytes) == weights_are_read_once or not work.bytes


@pytest.mark.slow
def test_a_critic_of_a_lora_run_is_an_adapter_too(planned):
    critic = {"advantage": [{"name": "gae"}], "critic": {"learning_rate": 0.01}}
    plan = make_plan(*planned(**critic), virtual_devices(1, "l4"))
    assert plan.too_large is None
    assert plan.resident["critic"] == 4 * (ADAPTER + 64)
    phases = {phase.program.name: phase for phase in plan.step.phases}
    of_state = 4 * (3 * ADAPTER + 3 * (ADAPTER + 64))
    for name in ("update", "critic update"):
        arguments = phases[name].program.arguments
        assert 0 < arguments - of_state - 2 * BASE < 2e5, name  # the rest is the mini-batch
        assert "parameters" not in phases[name].beside
