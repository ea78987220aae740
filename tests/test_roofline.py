"""The roofline: counts against numbers worked out by hand, and the whole program on a tiny
model.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import TINY, tiny_policy

from entropy_rl.config.optimizer import OptimizerConfig
from entropy_rl.models.decoder import make_policy
from entropy_rl.planning import counting
from entropy_rl.planning.counting import Cost
from entropy_rl.types import DecodeCache

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import roofline  # noqa: E402
import roofline_machine  # noqa: E402
import roofline_model  # noqa: E402
import roofline_train  # noqa: E402

SMALL, LARGE = roofline_model.SHAPES["1.5b"], roofline_model.SHAPES["7b"]
BANDWIDTH, RATE = 4.3e12, 790e12  # of one H200, in round numbers
BF16 = 2


# --- counts
# ------------------------------------------------------------------------------------------------


def test_the_parameters_are_those_of_the_published_models():
    assert counting.parameters(SMALL) == 1_543_714_304  # Qwen2.5-1.5B: 1.54 B
    assert counting.parameters(LARGE) == 7_615_616_512  # Qwen2.5-7B: 7.61 B


def test_the_parameters_are_those_of_the_policy():
    for config in (TINY, dataclasses.replace(TINY, tie_embeddings=True, qk_norm=False)):
        shapes = jax.eval_shape(make_policy(config).init, jax.random.key(0))
        assert counting.parameters(config) == sum(x.size for x in jax.tree.leaves(shapes))


def test_a_layer_counts_every_matrix_of_the_policy():
    shapes = jax.eval_shape(tiny_policy().init, jax.random.key(0))
    kernels = [
        x.size
        for path, x in jax.tree.leaves_with_path(shapes["layers"])
        if path[-1].key == "kernel"
    ]
    assert len(kernels) == 7
    assert counting.layer_weights(TINY) * TINY.num_layers == sum(kernels)


def dot_flops(jaxpr) -> int:
    """Operations of the matrix products in a traced function, those of loops as often as they
    run.
    """
    total = 0
    for equation in jaxpr.eqns:
        parts = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        inner = sum(dot_flops(part) for part in parts if hasattr(part, "eqns"))
        total += inner * equation.params.get("length", 1)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            (out,), left = equation.outvars, equation.invars[0].aval.shape
            total += 2 * out.aval.size * math.prod(left[axis] for axis in contracted)
    return total


def test_a_step_of_decoding_computes_what_the_traced_program_computes():
    rows, columns, prompts, length = 6, 9, 2, 5
    policy = tiny_policy()

    def step(params, ids, cache):
        hidden, cache = policy.decode(params, ids, jnp.int32(columns - 1), cache)
        return hidden @ policy.head(params).T

    params = jax.eval_shape(lambda key: policy.to_decode(policy.init(key)), jax.random.key(0))
    ids, mask = (jax.ShapeDtypeStruct((prompts, length), dtype) for dtype in ("int32", "bool"))
    _, prompt_cache = jax.eval_shape(policy.prefill, params, ids, mask)
    cache = DecodeCache(
        prompt_cache, mask, jax.eval_shape(lambda: policy.empty_rows(rows, columns))
    )
    traced = jax.make_jaxpr(step)(params, jax.ShapeDtypeStruct((rows,), "int32"), cache)
    assert counting.decode_step(TINY, rows, columns, prompts, length, 4).flops == dot_flops(
        traced.jaxpr
    )


def test_training_computes_what_the_traced_program_computes():
    rows, length = 3, 10
    policy = tiny_policy()
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((rows, length), "int32")
    traced = jax.make_jaxpr(jax.grad(lambda params, ids: policy.apply(params, ids).sum()))(
        shapes, ids
    )
    counted = roofline_train.training_flops(TINY, np.full(rows, length), np.zeros(rows, int))
    # In plain XLA short rows compute the pairs behind the causal mask, too.
    masked = rows * (length**2 - counting.causal_pairs(length))
    assert counted + 3 * counting.attention_flops(TINY, masked) == dot_flops(traced.jaxpr)


def test_a_token_of_cache_has_2_keys_and_values_of_every_kv_head_and_layer():
    assert counting.kv_bytes(SMALL, BF16) == 2 * 2 * 128 * 28 * 2 == 28 * 1024
    assert counting.kv_bytes(LARGE, BF16) == 56 * 1024


@pytest.mark.parametrize(
    "config, context, rows, milliseconds",
    [
        # 3.09 GB of weights, 28 KiB * 1024 * 256 = 7.52 GB of cache, 2 * 4 * 151936 * 256 = 0.31 GB
        # of logits
        (SMALL, 1024, 256, 2.54),
        (SMALL, 1024, 64, 1.17),
        (SMALL, 4096, 256, 7.78),
        (LARGE, 1024, 256, 6.86),
        (LARGE, 4096, 64, 6.80),
        (LARGE, 512, 512, 9.30),  # here computing takes longer than reading
    ],
)
def test_a_step_of_decoding_takes_what_a_roofline_by_hand_says(config, context, rows, milliseconds):
    cost = counting.decode_step(config, rows, context, 0, 0, BF16)
    assert 1e3 * cost.seconds(RATE, BANDWIDTH) == pytest.approx(milliseconds, rel=0.01)


def test_a_prompt_is_read_once_for_all_rows_that_share_it_and_attended_to_by_each():
    apart = counting.decode_step(SMALL, 64, 100, 64, 300, BF16)
    shared = counting.decode_step(SMALL, 64, 100, 8, 300, BF16)
    assert apart.bytes - shared.bytes == 56 * 300 * 28 * 1024
    assert apart.flops == shared.flops


def test_rows_cost_nothing_after_their_end():
    lengths = np.array([1, 4, 2, 2])  # a group of two each; the first token comes with the prompt
    cost = roofline_train.decode_rows(SMALL, lengths, 2, 10, BF16)
    by_hand = [
        counting.decode_step(SMALL, 3, 1, 2, 10, BF16),
        counting.decode_step(SMALL, 1, 2, 1, 10, BF16),
        counting.decode_step(SMALL, 1, 3, 1, 10, BF16),
    ]
    np.testing.assert_allclose(cost.flops, [step.flops for step in by_hand])
    np.testing.assert_allclose(cost.bytes, [step.bytes for step in by_hand])
    total = sum(step.seconds(RATE, BANDWIDTH) for step in by_hand)
    assert cost.seconds(RATE, BANDWIDTH) == pytest.approx(total)


@pytest.mark.parametrize("config, gigaflop", [(SMALL, 9.53), (LARGE, 43.0)])
def test_training_on_a_token_takes_six_operations_per_weight_and_attention(config, gigaflop):
    rows, length = 3, 1024
    flops = roofline_train.training_flops(config, np.zeros(rows, int), np.full(rows, length))
    assert flops / (rows * length) / 1e9 == pytest.approx(gigaflop, rel=0.003)


def test_the_head_runs_on_tokens_of_completions_only():
    whole = roofline_train.training_flops(SMALL, np.zeros(1, int), np.array([1024]))
    half = roofline_train.training_flops(SMALL, np.array([512]), np.array([512]))
    assert whole - half == 6 * 512 * 151936 * 1536


def test_a_prefill_computes_every_prompt_once():
    cost = counting.prefill(SMALL, 4, 256, 32, BF16)
    layers = counting.forward_flops(SMALL, np.full(4, 256), np.zeros(4, int))
    assert cost.flops == layers + 32 * 2 * 151936 * 1536
    assert cost.bytes == 2 * 1_543_714_304 + 4 * 256 * 28 * 1024 + 32 * 151936 * 8


def test_an_optimizer_moves_parameters_gradients_and_its_moments():
    for name, first, expected in (
        ("adamw", "float32", 32),  # with the norm 4 x (1 + 4 + 3)
        ("adamw", "bfloat16", 28),
        ("lion", "float32", 24),
        ("sgd", "bfloat16", 20),
        ("muon", "float32", 24),
        ("adafactor", "float32", 16),
    ):
        optimizer = OptimizerConfig(1e-6, name=name, first_moment_dtype=first)
        assert counting.optimizer_bytes(1000, optimizer) == 1000 * expected


def test_the_slower_of_computing_and_moving_counts_in_every_step():
    cost = Cost(np.array([10.0, 1.0]), np.array([2.0, 8.0]))
    assert cost.seconds(1.0, 2.0) == 10 + 4


def test_a_7b_model_is_trained_with_as_many_layers_as_fit():
    def fits(memory):
        return roofline_model.layers_that_fit(
            LARGE, memory, lambda c: roofline_model.training_bytes(c, 16384, "dots", BF16)
        )

    assert 1 <= fits(72 * 2**30) < fits(130 * 2**30) < 28 == fits(400 * 2**30)
    with pytest.raises(ValueError, match="not even one layer"):
        fits(8 * 2**30)


# --- the program
# -------------------------------------------------------------------------------------------

# One length of rows: few programs to compile.
QUICK = ["--shape", "tiny", "--layers", "1", "--remat", "none", "--runs", "2"]
QUICK += ["--batch", "4", "--group", "2", "--prompt", "4", "--context", "8"]


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    monkeypatch.setitem(roofline_machine._COPY_BYTES, "cpu", 2**20)
    monkeypatch.setitem(roofline_machine._MATMUL_SIZE, "cpu", 128)
    # The program sets it in its own process: it must not reach the tests after these.
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")


@pytest.mark.slow
def test_the_program_measures_every_work_and_writes_it_down(tmp_path, capsys):
    file = tmp_path / "roofline.json"
    assert roofline.main([*QUICK, "--output", str(file)]) == 0
    result, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert result["command"].startswith("roofline.py --shape tiny")
    assert result["device"]["platform"] == "cpu"
    assert result["versions"]["jax"] == jax.__version__
    assert set(result["machine"]["matmul"]) == {"bfloat16", "float32"}
    works = [line["work"] for line in result["measurements"]]
    assert works == ["decode", "train", "step", "step", "step", "step"]
    for line in result["measurements"]:
        assert 0 < line["min"] <= line["median"] <= line["max"]
        assert len(line["seconds"]) == 2
        assert line["share_of_roofline"] == pytest.approx(line["roofline_seconds"] / line["median"])
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["median"])
        assert line["layers"] == 1 and line["all_layers"] == 2
        assert line["what"] in printed
    whole, *phases = result["measurements"][2:]
    assert whole["roofline_seconds"] == pytest.approx(
        sum(phase["roofline_seconds"] for phase in phases)
    )
    assert sum(phase["min"] for phase in phases) <= whole["max"]
    assert "Fewer layers than the model has" in printed


@pytest.mark.slow
def test_what_runs_out_of_memory_is_told_and_does_not_stop_the_rest(tmp_path, capsys, monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate"
        )

    monkeypatch.setattr(roofline_train, "train", exhausted)
    file = tmp_path / "roofline.json"
    assert roofline.main([*QUICK, "decode", "train", "--output", str(file)]) == 1
    result = json.loads(file.read_text())
    assert [line["work"] for line in result["measurements"]] == ["decode"]
    assert [failure["what"] for failure in result["failures"]] == ["train, B=4"]
    assert "train, B=4           out of memory; allowed: smaller shapes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sing"], "'sing' is not allowed; allowed: decode, train, step"),
        (["--shape", "9b"], "invalid choice: '9b'"),
        (["--batch", "3"], "--batch: 3 is not allowed; allowed: multiples of --group, 4"),
        (["--context", "8"], "--context: 8 is not allowed; allowed: > 8"),
        (["--runs", "0"], "'0' is not allowed; allowed: whole numbers >= 1"),
        (["train", "--group", "1"], "--group: 1 is not allowed; allowed: >= 2"),
        (["--micro-batch", "16"], "--micro-batch: 16 is not allowed; allowed: >= --context"),
        (["--layers", "3"], "--layers: 3 is not allowed; allowed: 1 to 2"),
        (["--attention", "splash"], "on the backend cpu, got 'splash'"),
        (["--attention", "flash"], "must be one of auto, xla on the backend cpu, got 'flash'"),
        (["--decode-attention", "paged"], "invalid choice: 'paged'"),
        (["--decode-attention", "ragged"], "on the backend cpu, got 'ragged'"),
        (["--room", "8"], "--room: 8 is not allowed; allowed: >= 25"),
        (["--steps", "48"], "--steps: 48 is not allowed; allowed: less than twice the 24"),
        (
            ["decode", "--shape", "1.5b"],
            "decode: needs at least 8.6 GiB of 2.0 GiB; allowed: a smaller",
        ),
        (
            ["train", "--shape", "1.5b"],
            "train: needs at least 23.0 GiB of 2.0 GiB; allowed: fewer --layers",
        ),
        (["step", "--shape", "7b"], "--layers: not even one layer fits into the 2.0 GiB"),
        (["--output", "no/such/file.json"], "--output: no/such is not a directory"),
    ],
)
def test_what_is_unknown_or_does_not_fit_is_said_in_one_line_before_anything_runs(
    arguments, message, capsys, monkeypatch
):
    monkeypatch.setattr(roofline_machine, "memory_of_device", lambda: 2 * 2**30)
    monkeypatch.setattr(roofline_machine, "measure_machine", None)  # nothing may run
    shape = [] if "--shape" in arguments else ["--shape", "tiny"]
    try:
        code = roofline.main([*shape, *arguments])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert message in printed.err
    assert printed.err.count("\n") == 1
