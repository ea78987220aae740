"""The plan of supervised training; that its programs are those of runs is in test_sft_chats.py."""

import json

import jax
import pytest
import yaml

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.plan import PlanSFTConfig
from entropy_rl.models import DecoderConfig
from entropy_rl.planning import counting
from entropy_rl.planning.devices import virtual_devices
from entropy_rl.planning.estimate import Layout
from entropy_rl.planning.shapes import SHAPES, find_policy
from entropy_rl.planning.supervised import supervised_work

TINY = DecoderConfig(
    *(512, 64, 128, 2, 4, 2, 16, 1e4, 1e-6),
    qkv_bias=True,
    qk_norm=False,
    tie_embeddings=True,
)
SFT = {
    "seed": 0,
    "steps": 30,
    "batch_size": 8,
    "model": {"path": "nowhere"},
    "data": {"train": "absent.jsonl", "max_tokens": 64},
    "batching": {"max_tokens_per_micro_batch": 128},
    "optimizer": {"learning_rate": 0.01},
    "run": {"directory": "sft"},
}
PAIRS = {"loss": {"name": "dpo", "beta": 0.1}}
LORA = {"model": {"path": "nowhere", "lora": {"rank": 4, "alpha": 8.0}}}


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(here, changes, *more):
    (here / "sft.yaml").write_text(yaml.safe_dump(SFT | changes))
    return ["--config", "sft.yaml", "--shape", "tiny", *more]


def test_a_step_costs_what_is_counted_by_hand(here):
    """6 N FLOPs per token, N of the layers for all tokens and of the head for the targets."""
    few = ["--mean_tokens", "50", "--mean_targets", "10", "--devices", "1", "--chip", "l4"]
    works = {}
    for name, changes in {"sft": {}, "dpo": PAIRS, "lora": LORA}.items():
        config = parse_config(PlanSFTConfig, "plan-sft", arguments(here, changes, *few))
        layout = Layout(data=1, fsdp=1, tensor=1, local_chips=1, local_prompts=8)
        found = supervised_work(config, find_policy(config), layout, virtual_devices(1, "l4"))
        works[name] = {work.name: work.flops for work in found}
    pairs = 50 * 51 / 2 * 4 * 2 * 64
    layers = 8 * (2 * counting.layer_weights(TINY) * 2 * 50 + pairs)
    head = 2 * 512 * 64 * 8 * 10
    assert works["sft"] == {"update": 3 * (layers + head), "optimizer": 0}
    assert works["dpo"] == {
        "reference's log-probs": 2 * (layers + head),
        "update": 2 * 4 * (layers + head),
        "optimizer": 0,
    }
    # Frozen weights have no gradient; the adapter's products have all three.
    adapter = 2 * 2 * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192) * 8 * 50
    frozen = 2 * 2 * counting.layer_weights(TINY) * 8 * 50 + head
    assert works["lora"]["update"] == 3 * (layers + head + adapter) - frozen


def test_a_plan_on_a_mesh_is_printed_and_written(here, capsys):
    mesh = PAIRS | {"mesh": {"data": 2, "fsdp": 2}, "data": SFT["data"] | {"held_out": 20}}
    target = ["--devices", "4", "--chip", "l4", "--output", "plan.json"]
    assert main(["plan-sft", *arguments(here, mesh, *target)]) == 0
    text = capsys.readouterr().out
    assert "mesh data 2 x fsdp 2 x tensor 1" in text
    assert "of a chip: 16.76 GiB that JAX takes of 22.35, " in text
    assert "a step: 16 rows of at most 64 tokens, 128 tokens per micro-batch" in text
    assert "every row has 64 tokens, of which 64 are trained on" in text
    plan = json.loads((here / "plan.json").read_text())
    names = [program["name"] for program in plan["programs"]]
    assert names == ["reference's log-probs", "update", "validation"]
    assert plan["fits"] and plan["steps"] == 30 and plan["chip_hours"] == 4 * plan["hours"]
    # int32 ids and float32 weights and log-probs, rows over 4 devices, three validation batches.
    batch = 16 * (64 * 4 + 64 * 4 + 63 * 4) / 4
    assert plan["resident"]["validation rows"] == 3 * plan["resident"]["rows of a step"]
    assert plan["resident"]["rows of a step"] == batch
    assert plan["resident"]["reference parameters"] == plan["resident"]["parameters"]


def test_memory_of_the_host_has_the_checkpoint_and_the_process(here, capsys):
    assert main(["plan-sft", *arguments(here, {}, "--devices", "1", "--output", "plan.json")]) == 0
    plan = json.loads((here / "plan.json").read_text())
    update, checkpoint = plan["programs"]
    assert (update["name"], checkpoint["name"]) == ("update", "checkpoint")
    assert checkpoint["arguments"] == checkpoint["temporaries"] > plan["resident"]["parameters"] * 3
    assert plan["process"] > 0 and update["beside"]["process"] == plan["process"]
    assert "no estimate of time: say --chip" in capsys.readouterr().out


def test_what_does_not_fit_comes_with_what_may_help(here, capsys, monkeypatch):
    monkeypatch.setattr("entropy_rl.planning.supervised.chip_memory", lambda _: 2**20)
    target = ["--devices", "1", "--chip", "l4"]
    assert main(["plan-sft", *arguments(here, {}, *target)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("entropy-rl plan-sft: does not fit: update needs ")
    assert line.endswith(
        "try a smaller batching.max_tokens_per_micro_batch, 64 at least; or --model.remat full; "
        "or a mesh with more devices along fsdp or tensor; or a section model.lora, which trains "
        "an adapter of frozen parameters"
    )


OF_TASK = {
    "data": None,
    "model": None,
    "batching": {},
    "task": {"name": "countdown"},
    "architecture": dict.fromkeys(("hidden_size", "intermediate_size"), 64)
    | dict(num_layers=1, num_heads=2, num_kv_heads=2),
    "length_buckets": [64],
}


@pytest.mark.parametrize(
    ("changes", "options", "line"),
    [
        ({}, [], "topology: must be set if and only if devices is null, got None"),
        (
            OF_TASK,
            ["--devices", "1"],
            "data: must be given: what is planned is training on conversations or pairs, got None",
        ),
        (
            {},
            ["--devices", "1", "--mean_tokens", "65"],
            "mean_tokens: must be null or from 1 to 64, the longest row, got 65.0",
        ),
        (
            {},
            ["--devices", "1", "--mean_tokens", "9", "--mean_targets", "10"],
            "mean_targets: must be null or from 1 to 9, the tokens of a row, got 10.0",
        ),
        (
            {"mesh": {"data": 3}},
            ["--devices", "3"],
            "batch_size: must be a multiple of 3, so that the rows of an update are divisible by "
            "the 3 row shards of the mesh, got 8",
        ),
        (
            {"mesh": {"tensor": 3}},
            ["--devices", "3"],
            "mesh.tensor: must be a divisor of the model's 4 heads, got 3",
        ),
        ({"loss": {"name": "dpoo"}}, ["--devices", "1"], "loss.name: must be one of "),
    ],
)
def test_bad_settings_are_refused_in_one_line(here, capsys, changes, options, line):
    assert main(["plan-sft", *arguments(here, changes, *options)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"entropy-rl plan-sft: {line}") and err.count("\n") == 1


def test_a_slice_of_several_hosts_is_refused(here):
    from entropy_rl.planning.devices import Devices
    from entropy_rl.planning.supervised import make_supervised_plan

    given = arguments(here, {}, "--topology", "v5e:4x4")
    config = parse_config(PlanSFTConfig, "plan-sft", given)
    devices = Devices("v5e:4x4", "tpu", jax.devices()[:1], jax.devices()[:1], 4, None)
    with pytest.raises(ValueError, match=r"topology: must be one host, .*, got 'v5e:4x4'"):
        make_supervised_plan(config, find_policy(config), devices)
