"""A plan: real programs compiled for devices that are not there, its numbers against counts by
hand.
"""

import json

import jax
import pytest
import yaml
from error_lines import says
from jax.experimental.compilation_cache import compilation_cache
from tiny_runs import ROOT, TRAIN

from entropy_rl.cli.main import main
from entropy_rl.config.common import MeshConfig
from entropy_rl.distributed.sharding import make_mesh
from entropy_rl.models import DecoderConfig, make_policy
from entropy_rl.planning import counting
from entropy_rl.planning.abstract import abstract_run
from entropy_rl.planning.chips import CHIPS
from entropy_rl.planning.collectives import Amount, Collective, find_collectives
from entropy_rl.planning.compiled import Program, _refused
from entropy_rl.planning.devices import topology_devices, virtual_devices
from entropy_rl.planning.estimate import Layout, estimate
from entropy_rl.planning.plan import chip_memory, make_plan
from entropy_rl.planning.search import rough_bytes
from entropy_rl.planning.shapes import SHAPES, Architecture, find_architecture
from entropy_rl.planning.step import Phase, Step
from entropy_rl.planning.table import plan_text
from entropy_rl.rollout.batching import DecodingPlan

# Two layers of 4 heads and 2 KV heads of 16 dimensions.
MODEL = {
    "model_type": "qwen2",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
CONFIG = TRAIN | {
    "model": {"path": "model", "compute_dtype": "bfloat16"},
    "rollout": {"prompts": 8, "group_size": 4, "max_prompt_tokens": 16, "max_new_tokens": 32},
    "batching": {"mini_batch_prompts": 4, "max_tokens_per_micro_batch": 64},
    "mesh": {"fsdp": 4, "tensor": 2},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with the config.json of a model, without weights, and a training config."""
    path = tmp_path_factory.mktemp("plan")
    (path / "model").mkdir()
    (path / "model/config.json").write_text(json.dumps(MODEL))
    (path / "train.yaml").write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def planned(directory):
    """The plan of that on 8 virtual devices: what it printed, and its JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        arguments = [
            "--config",
            "train.yaml",
            "--devices",
            "8",
            "--chip",
            "v5e",
            "--output",
            "plan.json",
        ]
        arguments += ["--replay", "{name: uec_replay, rollouts: 3}"]
        assert main(["plan", *arguments]) == 0
    return json.loads((directory / "plan.json").read_text())


@pytest.fixture(scope="module")
def planned_with_critic(directory):
    """That of PPO, with moments on the host between updates, on 2 virtual devices."""
    ppo = CONFIG | {
        "advantage": [{"name": "gae"}, {"name": "whiten"}],
        "critic": {"learning_rate": 0.01, "warmup_steps": 2},
        "optimizer": {"learning_rate": 0.01, "offload": True},
        "mesh": {"fsdp": 2},
        "decoding": {"chunk_steps": None},  # one program
    }
    (directory / "ppo.yaml").write_text(yaml.safe_dump(ppo))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        arguments = [
            "--config",
            "ppo.yaml",
            "--devices",
            "2",
            "--chip",
            "v5e",
            "--output",
            "ppo.json",
        ]
        assert main(["plan", *arguments]) == 0
    return json.loads((directory / "ppo.json").read_text())


@pytest.fixture
def refused(directory, monkeypatch, capsys):
    """Runs a plan that must be refused; returns its one line, without what was said on the way."""
    monkeypatch.chdir(directory)
    jax.devices()  # a process that has its devices gets no others

    def run(*arguments: str, code: int = 2) -> str:
        assert main(["plan", "--config", "train.yaml", *arguments]) == code
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("entropy-rl plan: ")
        return line.removeprefix("entropy-rl plan: ")

    return run


# --- memory
# ------------------------------------------------------------------------------------------------


def test_parameters_and_optimizer_state_are_those_counted_by_hand(planned):
    # Whole: 5 norms of 64. Over tensor alone: biases of q, k and v. Over all 8: the rest.
    norms, biases = 5 * 64, 2 * (64 + 32 + 32)
    matrices = 512 * 64 + 2 * (64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 128)
    on_chip = norms + biases // 2 + matrices // 8
    assert planned["resident"]["parameters"] == 4 * on_chip
    # Two moments, and two counts: of Adam, and of the decoding of the learning rate.
    assert planned["resident"]["optimizer state"] == 2 * 4 * on_chip + 2 * 4
    decoding = norms + biases // 2 + matrices // 2
    assert planned["resident"]["decoding parameters"] == 2 * decoding


def test_vocabulary_entries_without_a_token_are_counted_and_stored():
    config = DecoderConfig(512, 64, 128, 2, 4, 2, 16, 1e4, 1e-6, True, False, True)
    policy = make_policy(config, unused=((500, 512),))
    stored = jax.tree.leaves(jax.eval_shape(policy.init, jax.random.key(0)))
    assert sum(x.size for x in stored) == counting.parameters(config)


def test_the_cache_is_that_counted_by_hand_and_lies_over_all_chips(planned):
    # Keys and values, 2 layers, 2 KV heads, 16 dimensions, 2 bytes; prompts once per group; and
    # their mask.
    per_token = 2 * 2 * 2 * 16 * 2
    assert planned["decoding"]["kind"] == "compact" and planned["decoding"]["slots"] == 32
    assert planned["cache"] == (8 * 16 + 32 * 32) * per_token // 8 + 8 * 16 // 4


def test_every_program_is_there_with_arguments_that_are_those_of_its_shapes(planned):
    programs = {program["name"]: program for program in planned["programs"]}
    assert list(programs) == ["weight sync", "prefill", "decode", "log-probs", "update"]
    resident, update = planned["resident"], programs["update"]
    state = resident["parameters"] + resident["optimizer state"]
    batch = resident["mini-batches"] // 2
    # 16 rows over 4 shares, of 48 ids; 32 new tokens: ids, mask, 3 numbers; length, reward, judged
    # or not.
    assert batch == 4 * (48 * 4 + 32 * (4 + 1 + 3 * 4) + 4 + 4 + 1)
    assert (
        state < update["arguments"] <= state + batch + 64
    )  # what the program does not read is left out
    assert state <= update["aliased"] + 8
    assert update["beside"]["mini-batches"] == batch
    # Room for three rollouts of completions, of two mini-batches each.
    assert update["beside"]["replay buffer"] == resident["replay buffer"] == 3 * 2 * batch
    assert update["peak"] == update["arguments"] + update["outputs"] - update["aliased"] + update[
        "temporaries"
    ] + sum(update["beside"].values())
    assert {c["kind"] for c in update["collectives"]} >= {"all-gather", "all-reduce"}


@pytest.mark.slow
def test_a_critic_is_a_second_model_without_a_head_that_lies_beside_all_that_does_not_use_it(
    planned_with_critic,
):
    resident = planned_with_critic["resident"]
    # The policy's head is its embedding, which the critic has as well; and 64 weights of the value.
    assert resident["critic"] == resident["parameters"] + 4 * 64
    assert resident["critic's optimizer state"] == resident["optimizer state"] + 2 * 4 * 64
    beside = {program["name"]: program["beside"] for program in planned_with_critic["programs"]}
    assert list(beside) == [
        "weight sync",
        "rollout",
        "log-probs",
        "values",
        "update",
        "critic update",
    ]
    assert all("critic" in beside[name] for name in ("weight sync", "rollout", "log-probs"))
    assert "critic" not in beside["values"] and "parameters" in beside["values"]
    # The moments are on the host until the updates, which take the state as a whole.
    assert not any("optimizer state" in part for parts in beside.values() for part in parts)


@pytest.mark.slow
def test_both_updates_of_a_step_with_a_critic_take_and_return_the_whole_state(planned_with_critic):
    programs = {program["name"]: program for program in planned_with_critic["programs"]}
    resident = planned_with_critic["resident"]
    names = ("parameters", "optimizer state", "critic", "critic's optimizer state")
    state, batch = sum(resident[name] for name in names), resident["mini-batches"] // 2
    # With the values, and the advantages that are whitened over the rollout.
    assert batch == 8 * (48 * 4 + 32 * (4 + 1 + 4 * 5) + 4 + 4 + 1)
    for name in ("update", "critic update"):
        assert state < programs[name]["arguments"] <= state + batch + 64
        assert state <= programs[name]["aliased"] + 8
        assert list(programs[name]["beside"]) == ["mini-batches"]
    without_values = batch - 8 * 32 * 4 * 2
    read = 8 * (48 * 4 + 4 + 32)  # tokens, lengths of prompts, mask: jax 0.12 drops the rest
    assert programs["values"]["arguments"] - resident["critic"] in (without_values, read)


@pytest.mark.slow
def test_in_the_warm_up_of_a_critic_the_policys_update_costs_nothing(planned_with_critic):
    seconds = {work["name"]: work["seconds"] for work in planned_with_critic["work"]}
    of_policy = seconds["update"] + seconds["optimizer"]
    hours = (6 * sum(seconds.values()) - 2 * of_policy) / 3600
    assert planned_with_critic["hours"] == pytest.approx(hours)


def test_what_does_not_fit_ends_with_1_and_a_line_that_names_buffers_and_a_way_out(
    refused, monkeypatch
):
    monkeypatch.setitem(CHIPS, "v5e", CHIPS["v5e"]._replace(hbm=2**19))
    line = refused("--devices", "8", "--chip", "v5e", code=1)
    assert (
        line.startswith("does not fit: update needs ") and " GiB of a chip; largest (GiB): " in line
    )
    assert (
        "try a smaller batching.max_tokens_per_micro_batch, 48 at least; or --model.remat full"
        in line
    )


def test_no_mesh_and_no_offloading_is_advised_where_the_memory_is_that_of_the_host(
    refused, monkeypatch
):
    monkeypatch.setattr("entropy_rl.planning.plan.chip_memory", lambda _: 2**19)
    line = refused(*("--devices", "1", "--mesh.fsdp", "1", "--mesh.tensor", "1"), code=1)
    assert line.partition("; try ")[2] in (
        "a section model.lora, which trains an adapter of frozen parameters",  # of a checkpoint
        "a smaller batching.max_tokens_per_micro_batch, 48 at least; or --model.remat full; or a "
        "section model.lora, which trains an adapter of frozen parameters",
    )


@pytest.mark.slow
def test_a_checkpoint_counts_where_the_memory_is_that_of_the_host(directory, planned, monkeypatch):
    monkeypatch.chdir(directory)
    one = [*("--mesh.fsdp", "1"), *("--mesh.tensor", "1"), *("--devices", "1")]
    one += ["--old_log_probs", "sampler", "--output", "host.json"]
    assert main(["plan", "--config", "train.yaml", *one]) == 0
    plan = json.loads((directory / "host.json").read_text())
    *_, update, checkpoint = plan["programs"]
    state = plan["resident"]["parameters"] + plan["resident"]["optimizer state"]
    assert (update["name"], checkpoint["name"]) == ("update", "checkpoint")
    counts = 2 * 4  # of steps and of updates
    beside = plan["resident"]["mini-batches"] + plan["process"]
    assert checkpoint["peak"] == 2 * (state + counts) + beside
    assert 100 * 2**20 < plan["process"] < 2 * 2**30 and planned["process"] is None
    assert "checkpoint" not in [program["name"] for program in planned["programs"]]
    # The old log-probs are the sampler's, so there is no pass for them.
    assert "log-probs" not in [program["name"] for program in plan["programs"]]
    # Moments that are moved to the host stay in the same memory.
    assert main(["plan", "--config", "train.yaml", *one, "--optimizer.offload", "true"]) == 0
    offloaded = json.loads((directory / "host.json").read_text())
    assert [_but_process(program) for program in offloaded["programs"]] == [
        _but_process(program) for program in plan["programs"]
    ]


def _but_process(program):
    return program["name"], program["peak"] - program["beside"]["process"]


def test_the_compilers_own_refusal_becomes_sizes_and_names():
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory
    space hbm.
Used 19.50G of 15.75G hbm. Exceeded hbm capacity by 3.75G.
  1. Size: 4.00G
     Operator: op_name="jit(update)/while/body/mlp/up_proj/dot_general"
     Shape: f32[8192,65536]{1,0:T(8,128)}
     Unpadded size: 4.00G
  2. Size: 512.0M
     Shape: bf16[4096,65536]{1,0}
"""
    program = _refused("update", 1.0, message, {})
    assert program.refused == program.peak == int(19.5 * 2**30)
    assert program.largest[0] == (4 * 2**30, "mlp/up_proj/dot_general f32[8192,65536]")
    assert program.largest[1] == (2**29, "bf16[4096,65536]")
    # Its other words are of the temporaries alone.
    message = (
        "RESOURCE_EXHAUSTED: ... required for HLO temporaries (21.25G) exceeds "
        "available HBM (15.75G)."
    )
    state = {"state": jax.ShapeDtypeStruct((2**20,), "float32")}
    program = _refused("update", 1.0, message, state)
    assert program.peak == int(21.25 * 2**30) + 2**22
    assert program.largest == ((2**22, "state float32[1048576]"),)


# --- collectives
# -------------------------------------------------------------------------------------------

HLO = """HloModule jit_f

%branch_small (p: f32[4]) -> f32[4] {
  ROOT %all-reduce.1 = f32[4]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%branch_large (p: f32[4]) -> f32[4] {
  ROOT %all-reduce.2 = (f32[100]{0}, s32[]) all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

%layer (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %all-gather-start.1 = (bf16[2,4]{1,0}, bf16[8,4]{1,0:T(8,128)}) all-gather-start(%x), dimensions={0}
  %all-gather-done.1 = bf16[8,4]{1,0} all-gather-done(%all-gather-start.1)
  ROOT %tuple.1 = (s32[], bf16[8,4]{1,0}) tuple(%i, %all-gather-done.1)
}

%layer_condition (p: (s32[], bf16[8,4])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(28)
  %get-tuple-element.7 = s32[] get-tuple-element(%p), index=0
  ROOT %compare.7 = pred[] compare(%get-tuple-element.7, %constant.7), direction=LT
}

%micro_batch (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %while.1 = (s32[], bf16[8,4]{1,0}) while(%tuple.0), condition=%layer_condition, body=%layer
  %reduce-scatter.1 = f32[2,4]{1,0} reduce-scatter(%y), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %tuple.2 = (s32[], f32[4]) tuple(%i, %z)
}

%micro_batch_condition (p: (s32[], f32[4])) -> pred[] {
  ROOT %compare.8 = pred[] compare(%get-tuple-element.1, %get-tuple-element.2), direction=LT
}

%noted_condition (p: (s32[], f32[4])) -> pred[] {
  ROOT %lt = pred[] custom-call(%p)
}

%noted (p: (s32[], u32[3])) -> (s32[], u32[3]) {
  ROOT %collective-permute-start.1 = (u32[3]{0}, u32[3]{0}, u32[], u32[]) collective-permute-start(%p)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %while.2 = (s32[], f32[4]{0}) while(%t), condition=%micro_batch_condition, body=%micro_batch
  %while.3 = (s32[], u32[3]) while(%t), condition=%noted_condition, body=%noted, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %conditional.1 = f32[4]{0} conditional(%w, %a, %a), branch_computations={%branch_small, %branch_large}
}
"""  # noqa: E501


def test_collectives_are_counted_as_often_as_their_loops_run():
    assert find_collectives(HLO) == {
        # Only the data know how many micro-batches there are; each has 28 layers.
        Collective("all-gather", 1): Amount(28, 28 * 8 * 4 * 2),
        Collective("reduce-scatter", 1): Amount(
            1, 4 * 2 * 4 * 4
        ),  # its input is larger by the group
        Collective("collective-permute", 0): Amount(5, 5 * 3 * 4),
        Collective("all-reduce", 0): Amount(1, 100 * 4 + 4),  # of the larger branch
    }


# --- time
# --------------------------------------------------------------------------------------------------


def test_the_least_time_of_a_step_is_that_counted_by_hand(directory):
    from entropy_rl.cli.parse import parse_config
    from entropy_rl.config.plan import PlanConfig

    recipe = str(ROOT / "configs/qwen2_5_7b_grpo_entropy.yaml")
    config = parse_config(PlanConfig, "plan", ["--config", recipe, "--topology", "v5p:2x2x4"])
    c, chip = SHAPES["qwen2.5-7b"], CHIPS["v5p"]
    layout = Layout(data=1, fsdp=16, tensor=1, local_chips=4, local_prompts=128)
    works = estimate(
        config, Architecture(c), layout, DecodingPlan("refill", 128, 128), 8192, chip, 1.0
    )
    seconds = {work.name: work.seconds for work in works}
    weights = 7_615_616_512
    # Decoding moves the weights without the embedding, and 56 KiB per token that is attended to,
    # and written.
    read = (weights - 152064 * 3584) * 2
    cache = 32 * (2048 + np_mean(8192)) * 56 * 1024
    logits = 2 * 4 * 152064 * 32
    step = (read + cache + 32 * (56 * 1024 + 3584 * 2) + logits) / chip.bandwidth
    assert seconds["decode"] == pytest.approx(8191 * 8 * step, rel=1e-3)
    # 2 N operations per token, with N of the layers, and the head for responses; half of all pairs
    # are seen.
    layers, head = counting.layer_weights(c) * 28, counting.head_weights(c)
    pairs = 10240 * 10241 / 2 * 4 * 28 * 128 * 28
    forward = 4096 * (2 * layers * 10240 + 2 * head * 8192 + pairs) / 16
    assert seconds["log-probs"] == pytest.approx(forward / chip.flops, rel=1e-3)
    again = forward - 4096 * 2 * head * 8192 / 16  # remat: full
    assert seconds["update"] == pytest.approx((3 * forward + again) / chip.flops, rel=1e-3)
    assert seconds["optimizer"] == pytest.approx(16 * 32 * weights / 16 / chip.bandwidth)
    half = estimate(
        config, Architecture(c), layout, DecodingPlan("refill", 128, 128), 8192, chip, 0.5
    )
    assert [work.seconds for work in half] == pytest.approx([2 * work.seconds for work in works])
    # A critic has no head: 2 N of the layers, three times and once more for the layers of `remat`.
    ppo = parse_config(
        PlanConfig,
        "plan",
        [
            "--config",
            recipe.replace("grpo", "ppo"),
            "--topology",
            "v5p:2x2x4",
            "--critic.path",
            "small",
        ],
    )
    small = SHAPES["qwen2.5-1.5b"]
    works = estimate(
        ppo, Architecture(c, small), layout, DecodingPlan("refill", 128, 128), 8192, chip, 1.0
    )
    both = {work.name: work.seconds for work in works}
    assert both["log-probs"] == seconds["log-probs"] and both["optimizer"] == seconds["optimizer"]
    pairs = 10240 * 10241 / 2 * 4 * 12 * 128 * 28
    layers = 4096 * (2 * counting.layer_weights(small) * 28 * 10240 + pairs) / 16
    assert both["values"] == pytest.approx(layers / chip.flops)
    assert both["critic update"] == pytest.approx(4 * layers / chip.flops)
    of_critic = 1_543_714_304 + 1536  # embedding and head are one table
    assert both["critic optimizer"] == pytest.approx(16 * 32 * of_critic / 16 / chip.bandwidth)
    assert both["update"] == seconds["update"]  # the whitened advantage reads what was recorded
    # One that looks at the policy as it is, all over the mini-batch, needs a forward pass before.
    advantage = ["--advantage", '[{"name": "group_normalize"}, {"name": "eapo"}]']
    wide = parse_config(
        PlanConfig, "plan", ["--config", recipe, "--topology", "v5p:2x2x4", *advantage]
    )
    works = estimate(
        wide, Architecture(c), layout, DecodingPlan("refill", 128, 128), 8192, chip, 1.0
    )
    update = next(work.seconds for work in works if work.name == "update")
    assert update == pytest.approx(seconds["update"] + forward / chip.flops, rel=1e-3)


def test_greedy_rows_cost_what_other_rows_cost_to_sample_and_nothing_to_train_on():
    from entropy_rl.cli.parse import parse_config
    from entropy_rl.config.plan import PlanConfig

    recipe = str(ROOT / "configs/qwen2_5_7b_grpo_entropy.yaml")
    layout = Layout(data=1, fsdp=16, tensor=1, local_chips=4, local_prompts=128)
    chip, decoding = CHIPS["v5p"], DecodingPlan("compact", 256, 128)

    def plan(group_size, advantage):
        more = [
            "--rollout.group_size",
            str(group_size),
            "--advantage",
            f'[{{"name": "{advantage}"}}]',
        ]
        config = parse_config(
            PlanConfig, "plan", ["--config", recipe, "--topology", "v5p:2x2x4", *more]
        )
        works = estimate(
            config, Architecture(SHAPES["qwen2.5-7b"]), layout, decoding, 8192, chip, 1.0
        )
        return {work.name: work for work in works}

    greedy, two, one = plan(1, "remax"), plan(2, "whiten"), plan(1, "whiten")
    sampling = ("prefill", "decode")
    assert [greedy[name] for name in sampling] == [two[name] for name in sampling]
    assert {k: v for k, v in greedy.items() if k not in sampling} == {
        k: v for k, v in one.items() if k not in sampling
    }


def test_the_rows_of_a_rollout_are_printed_with_the_greedy_ones(config_of, monkeypatch):
    step = Step([Phase(Program("update", 0.0), {})], None)
    monkeypatch.setattr("entropy_rl.planning.plan.compile_step", lambda *_: step)
    greedy = config_of("--rollout.group_size", "1", "--advantage", "[{name: remax}]")
    plan = make_plan(greedy, find_architecture(greedy), virtual_devices(1, "l4"))
    line = "rollout of a host: 16 rows, 16 decoding slots, prompts of 16 tokens"
    assert plan_text(plan).splitlines()[2] == line


def np_mean(steps: int) -> float:
    """The mean of 1 .. steps - 1."""
    return steps / 2


def test_the_table_of_shapes_is_that_of_the_published_models():
    counted = {name: counting.parameters(c) for name, c in SHAPES.items()}
    # The numbers on the model cards: 0.49 B, 1.54 B, 7.61 B, 0.6 B, 8.2 B, 8.03 B and 135 M.
    assert counted == {
        "qwen2.5-0.5b": 494_032_768,
        "qwen2.5-1.5b": 1_543_714_304,
        "qwen2.5-7b": 7_615_616_512,
        "qwen3-0.6b": 596_049_920,
        "qwen3-8b": 8_190_735_360,
        "llama3-8b": 8_030_261_248,
        "smollm2-135m": 134_515_008,
    }


@pytest.fixture
def config_of(directory, monkeypatch):
    """Parses the config with options."""
    from entropy_rl.cli.parse import parse_config
    from entropy_rl.config.plan import PlanConfig

    monkeypatch.chdir(directory)
    given = ["--config", "train.yaml", "--devices", "1", "--mesh.fsdp", "1", "--mesh.tensor", "1"]
    return lambda *options: parse_config(PlanConfig, "plan", [*given, *options])


def test_a_shape_takes_precedence_over_a_model_that_exists(config_of):
    assert find_architecture(config_of()).policy.vocab_size == MODEL["vocab_size"]
    config = config_of("--shape", "qwen2.5-0.5b")
    assert find_architecture(config).policy == SHAPES["qwen2.5-0.5b"]
    asset = config_of("--model.path", "asset:countdown", "--shape", "qwen2.5-0.5b")
    assert find_architecture(asset).policy == SHAPES["qwen2.5-0.5b"]


def test_of_a_gpu_a_run_has_what_jax_takes(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    gpu, tpu = (virtual_devices(1, name) for name in ("h100", "v5e"))
    assert chip_memory(gpu) == 0.75 * 80e9 and chip_memory(tpu) == 15.75 * 2**30
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert chip_memory(gpu) == 0.9 * 80e9 and chip_memory(tpu) == 15.75 * 2**30
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION")
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(
        ValueError, match=r"^XLA_CLIENT_MEM_FRACTION: must be a number > 0 and <= 1, got 'most'$"
    ):
        chip_memory(gpu)


def test_a_search_counts_the_state_of_the_optimizer_that_is_used(config_of):
    def rough(*options):
        config = config_of(*options)
        architecture = find_architecture(config)
        run = abstract_run(config, architecture, virtual_devices(1, "v5e"))
        return rough_bytes(run, architecture, Layout.of(None, 1, config.rollout.prompts))

    parameters = counting.parameters(find_architecture(config_of()).policy)
    adamw, lion, sgd, adafactor = (
        rough("--optimizer.name", name) for name in ("adamw", "lion", "sgd", "adafactor")
    )
    half = rough("--optimizer.first_moment_dtype", "bfloat16")
    count = 4  # of updates, in the state
    assert adamw - lion == pytest.approx(4 * parameters, abs=3 * count)
    assert adamw - sgd == pytest.approx(4 * parameters, abs=3 * count)
    assert adamw - half == 2 * parameters
    assert adafactor < adamw - 3 * parameters
    critic = ("--advantage", "[{name: gae}]", "--critic.learning_rate", "0.1")
    of_critic = counting.critic_parameters(find_architecture(config_of()).policy)
    assert rough(*critic) - adamw == pytest.approx(3 * 4 * of_critic, abs=3 * count)


def test_micro_batches_of_shared_prompts_are_those_of_their_tokens(config_of):
    """2 prompts x 8 rows, prompts of 48 and 16 new tokens: 2 (48 + 8 · 16) tokens, not 16 · 64."""
    shape = ("--rollout.max_prompt_tokens", "48", "--rollout.max_new_tokens", "16")
    shape += ("--rollout.prompts", "2", "--rollout.group_size", "8")
    config = config_of(*shape, "--batching.mini_batch_prompts", "2")
    architecture = find_architecture(config)
    c, layout = architecture.policy, Layout.of(None, 1, 2)
    works = estimate(config, architecture, layout, DecodingPlan("compact", 16, 8), 16, None, 1.0)
    (update,) = (work for work in works if work.name == "update")
    weights, micro_batches = counting.parameters(c), 2 * (48 + 8 * 16) / 64
    assert update.bytes == (3 * 2 + 2 * 4) * weights * micro_batches


@pytest.mark.slow
def test_a_search_compiles_so_many_and_puts_what_fits_first(directory, monkeypatch, capsys):
    monkeypatch.chdir(directory)
    compiled = []

    def compile_step(run, *_):
        compiled.append(run)
        peak = 2**40 if len(compiled) == 1 else 2**20
        return Step([Phase(Program("update", 0.0, temporaries=peak), {})], None)

    monkeypatch.setattr("entropy_rl.planning.plan.compile_step", compile_step)
    arguments = ["--devices", "4", "--chip", "v5e", "--search", "3", "--output", "search.json"]
    assert main(["plan", "--config", "train.yaml", *arguments]) == 0
    assert len(compiled) == 3
    out, err = capsys.readouterr()
    assert err.count("search: ") == 4
    assert [line.split()[-1] for line in out.splitlines()[1:4]] == ["fits", "fits", "large"]
    plan = json.loads((directory / "search.json").read_text())
    assert plan["fits"] and len(plan["others"]) == 2 and not plan["others"][-1]["fits"]


# --- errors
# ------------------------------------------------------------------------------------------------

ON_8 = ("--devices", "8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "topology: must be set if and only if devices is null, got None"),
        (
            (*ON_8, "--topology", "v5e:2x2"),
            "topology: must be set if and only if devices is null, got 'v5e:2x2'",
        ),
        (
            ("--topology", "v5litepod-16"),
            "topology: must be one of v4, v5e, v5p, v6e with the chips along each axis, such "
            "as v5e:4x4 or v5p:2x2x4, got 'v5litepod-16'",
        ),
        (
            ("--topology", "v9:2x2"),
            "topology: must be one of v4, v5e, v5p, v6e with the chips along each axis, such "
            "as v5e:4x4 or v5p:2x2x4, got 'v9:2x2'",
        ),
        (
            (*ON_8, "--chip", "v7"),
            "chip: must be one of v4, v5e, v5p, v6e, h100, h200, a100-40, a100-80, l4, rtx4090, "
            "t4, got 'v7'",
        ),
        (
            ("--topology", "v5e:2x2", "--chip", "v5e"),
            "chip: must be null without devices, got 'v5e'",
        ),
        (
            ("--devices", "4000"),
            "devices: must be at most 8, the devices of this process, got 4000",
        ),
        (
            (*ON_8, "--mesh.fsdp", "3"),
            "batching.mini_batch_prompts: must be a multiple of 3, so that",
        ),
        (
            (*ON_8, "--mesh.data", "5"),
            "mesh: the product of the sizes must be at most the number of",
        ),
        (
            (*ON_8, "--mesh.tensor", "8", "--mesh.fsdp", "1"),
            "mesh.tensor: must be a divisor of the model's 4 heads, got 8",
        ),
        ((*ON_8, "--model.path", "gone"), "model.path: must be a Hugging Face directory, "),
        ((*ON_8, "--shape", "qwen", "--print_config"), "shape: must be one of qwen2.5-0.5b, "),
        ((*ON_8, "--chip", "v7", "--print_config"), "chip: must be one of v4, v5e, v5p, "),
        (
            (*ON_8, "--model.path", "gone", "--shape", "qwen"),
            "shape: must be one of qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-7b, qwen3-0.6b, qwen3-8b, "
            "llama3-8b, smollm2-135m, got 'qwen' "
            "(did you mean 'qwen3-8b'?)",
        ),
        (
            (*ON_8, "--chip", "a100"),
            "chip: must be one of v4, v5e, v5p, v6e, h100, h200, a100-40, a100-80, l4, rtx4090, "
            "t4, got 'a100' (did you mean 'a100-40'?)",
        ),
        (
            (*ON_8, "--critic_shape", "qwen3-8b"),
            "critic_shape: must be null without critic.path, got 'qwen3-8b'",
        ),
        (
            (*ON_8, "--critic.learning_rate", "0.1", "--critic.path", "gone"),
            "critic.path: must be a Hugging Face directory, asset:NAME, the directory of a run or "
            "NAMESPACE/NAME of the Hugging Face hub, got 'gone'; or --critic_shape qwen2.5-0.5b|",
        ),
        (
            (*ON_8, "--batching.max_tokens_per_micro_batch", "40"),
            "batching.max_tokens_per_micro_batch: must be >= 48, the longest row of prompt and "
            "completion, got 40",
        ),
        (
            (*ON_8, "--mean_new_tokens", "33"),
            "mean_new_tokens: must be null or from 1 to 32, got 33.0",
        ),
        ((*ON_8, "--output", "model"), "output: model: must be a regular file, got a directory"),
        (
            (*ON_8, "--efficiency", "0"),
            "efficiency: must be > 0 and <= 1, got 0.0",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(refused, arguments, message):
    assert refused(*arguments).startswith(message)


def test_without_the_tpu_compiler_the_line_says_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    assert refused("--topology", "v5e:2x2").endswith("not installed: `pip install 'jax[tpu]'`")


@pytest.mark.slow
def test_the_recipe_for_one_gpu_fits_24_gb():
    recipe = str(ROOT / "configs" / "qwen2_5_0_5b_one_gpu.yaml")
    chip = ["--devices", "1", "--chip", "l4"]
    assert main(["plan", "--config", recipe, "--shape", "qwen2.5-0.5b", *chip]) == 0


# --- the real compiler
# -------------------------------------------------------------------------------------


@pytest.fixture
def tpu_compiler():
    """The cache of compiled programs, which is for devices that exist, is off; jax looks at that
    once.
    """
    pytest.importorskip("libtpu", reason="libtpu is not installed: no TPU compiler")
    before = jax.config.jax_enable_compilation_cache
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


@pytest.mark.tpu_compiler
def test_a_tiny_model_is_planned_for_a_slice_that_nobody_has(
    tpu_compiler, directory, monkeypatch, capsys
):
    monkeypatch.chdir(directory)
    arguments = [
        "--topology",
        "v5e:2x2",
        "--mesh.fsdp",
        "2",
        "--mesh.tensor",
        "2",
        "--output",
        "tpu.json",
    ]
    # Rows of one length: one shape of attention to compile.
    arguments += ["--rollout.max_prompt_tokens", "4", "--rollout.max_new_tokens", "4"]
    assert main(["plan", "--config", "train.yaml", *arguments]) == 0
    plan = json.loads((directory / "tpu.json").read_text())
    assert plan["fits"] and plan["chips"] == 4 and plan["hosts"] == 1
    assert all(program["temporaries"] > 0 for program in plan["programs"])
    assert plan["step_seconds"] > 0
    assert "update" in capsys.readouterr().out


@pytest.mark.tpu_compiler
def test_a_slice_that_does_not_exist_is_refused_in_a_line(tpu_compiler, refused):
    line = refused("--topology", "v6e:3x3")
    assert says(line, "topology: must be one of v4, ..., got 'v6e:3x3': Topology layout")


@pytest.mark.tpu_compiler
def test_a_mesh_that_no_wiring_suits_has_its_tensor_groups_within_hosts(tpu_compiler):
    devices = topology_devices("v6e:8x8")
    mesh = make_mesh(MeshConfig(fsdp=16, tensor=4), devices.all)
    hosts = [{device.process_index for device in group} for group in mesh.devices.reshape(-1, 4)]
    assert hosts == [{number} for number in range(16)]
    assert len(devices.host) == 4 and devices.hosts == 16
