"""Ids of the Hugging Face hub, with a stand-in for the hub: download, commits, cache, upload."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from fake_hub import FakeHub
from hf_fixtures import make_hf_dir
from huggingface_hub import constants
from tiny_runs import EVALUATION, ROOT

from entropy_rl.cli.main import main
from entropy_rl.config.common import ModelConfig
from entropy_rl.config.lora import LoraConfig
from entropy_rl.models.peft import load_adapter
from entropy_rl.runs.hub import is_hub_id, is_pinned, pin_models, resolve, split_id, upload
from entropy_rl.runs.identity import adapter_digests
from entropy_rl.runs.load_model import check_models, find_model, keep_model_files, load_model
from entropy_rl.tasks.data_files.files import find_data_files

NAME = "lab/tiny"


@dataclasses.dataclass(frozen=True)
class Config:
    model: ModelConfig
    critic: ModelConfig | None = None


@pytest.fixture(scope="module")
def model_files(tmp_path_factory) -> dict[str, bytes]:
    directory = make_hf_dir(tmp_path_factory.mktemp("hub") / "tiny", "qwen2", tokenizer=True)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return {**files, "onnx/model.json": b"{}", "pytorch_model.bin": b"x"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without repositories, and an empty cache."""
    hub = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.chdir(tmp_path)
    yield hub
    hub.close()


@pytest.fixture
def offline(monkeypatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_an_id_is_downloaded_and_loaded_from_the_cache_without_asking_again(hub, model_files):
    commit = hub.add(NAME, model_files)
    pinned = resolve(NAME)
    assert pinned == f"{NAME}@{commit}"
    loaded = load_model(pinned)
    assert loaded.directory.name == commit and loaded.config.hidden_size == 64
    names = {path.name for path in loaded.directory.iterdir()}
    assert "model.safetensors" in names and not names & {"onnx", "pytorch_model.bin"}
    hub.asked.clear()
    assert find_model(pinned) == loaded.directory and hub.asked == []


def test_a_process_that_has_imported_nothing_else_downloads(hub, model_files, tmp_path):
    # Submodules of huggingface_hub are attributes of it only where something has imported them.
    hub.add(NAME, model_files)
    code = f"from entropy_rl.runs.hub import resolve; print(resolve({NAME!r}))"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    environment["HF_HUB_OFFLINE"] = "0"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == resolve(NAME)


def test_a_local_model_asks_the_hub_nothing(hub, tmp_path):
    load_model(str(make_hf_dir(tmp_path / "model", "qwen2", tokenizer=True)))
    load_model("asset:countdown")
    assert hub.asked == []


def test_a_revision_is_a_commit_and_the_default_is_the_newest(hub, model_files):
    first, second = hub.add(NAME, model_files), hub.add(NAME, {**model_files, "more.txt": b"new"})
    assert resolve(f"{NAME}@{first}") == f"{NAME}@{first}"
    assert resolve(NAME) == f"{NAME}@{second}"
    assert not (find_model(f"{NAME}@{first}") / "more.txt").exists()


def test_a_directory_keeps_the_commit_that_it_recorded(hub, model_files, tmp_path):
    first = hub.add(NAME, model_files)
    config = Config(ModelConfig(NAME), ModelConfig(NAME))
    started = pin_models(config, tmp_path / "run")
    assert started.model.path == started.critic.path == f"{NAME}@{first}"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(started)))
    second = hub.add(NAME, model_files)
    hub.asked.clear()
    assert pin_models(config, tmp_path / "run") == started and hub.asked == []
    assert pin_models(config, tmp_path / "other").model.path == f"{NAME}@{second}"
    other = Config(ModelConfig(f"{NAME}@{second}"))  # what is asked for counts
    assert pin_models(other, tmp_path / "run") == other


def test_an_adapter_of_the_hub_is_pinned_and_recorded_with_the_revision_of_its_base(hub, tmp_path):
    base = make_hf_dir(tmp_path / "qwen3", "qwen3", tokenizer=True)
    golden = ROOT / "tests" / "golden" / "peft"
    commits = {
        name: hub.add(name, {path.name: path.read_bytes() for path in directory.iterdir()})
        for name, directory in ((NAME, base), ("lab/adapter", golden))
    }
    config = Config(ModelConfig(NAME, lora=LoraConfig(path="lab/adapter")))
    pinned = pin_models(config, tmp_path / "run").model
    assert pinned.path == f"{NAME}@{commits[NAME]}"
    assert pinned.lora.path == f"lab/adapter@{commits['lab/adapter']}"
    check_models(Config(pinned))
    assert adapter_digests(pinned.lora.path) == adapter_digests(str(golden))
    model = load_model(pinned)
    assert model.base.spec == load_adapter(golden, model.config)[0]
    keep_model_files(model, tmp_path)
    fields = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == NAME and fields["revision"] == commits[NAME]
    with pytest.raises(ValueError, match=r"^model\.lora\.path: must be .*lab/none.*not found"):
        load_model(ModelConfig(NAME, lora=LoraConfig(path="lab/none")))


def test_without_the_hub_the_cache_is_used_and_said(hub, model_files, offline, caplog):
    commit = hub.add(NAME, model_files)
    find_model(NAME)
    offline()
    assert resolve(NAME) == f"{NAME}@{commit}" and find_model(NAME).name == commit
    assert f"HF_HUB_OFFLINE is set; using the cached commit {commit}" in caplog.text


def test_config_and_tokenizer_alone_are_no_model_in_the_cache(hub, model_files, offline):
    commit = hub.add(NAME, model_files)
    find_model(NAME, weights=False)
    assert not any("safetensors" in line for line in hub.asked if "resolve" in line)
    offline()
    with pytest.raises(ValueError, match=f"`hf download {NAME}` caches"):
        find_model(NAME)
    assert find_model(f"{NAME}@{commit}", weights=False).name == commit


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("lab/nothing", "(not found; a private one needs `hf auth login`)"),
        (f"{NAME}@v9", "(it has no such revision); `hf download lab/tiny --revision v9` caches"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, model_files, path, reason):
    hub.add(NAME, model_files)
    with pytest.raises(ValueError, match=r"^model\.path: must be a Hugging Face dir") as error:
        find_model(path)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_path_beside_local_files_is_no_id(hub, tmp_path):
    (tmp_path / "runs").mkdir()
    assert not is_hub_id("runs/none") and is_hub_id("run/none") and not is_hub_id("none")
    assert is_hub_id("runs/none@v1")  # as recorded by a run
    with pytest.raises(ValueError, match=r"^model\.path: must be .* got 'runs/none'$"):
        find_model("runs/none")
    assert hub.asked == []


def test_a_path_is_split_by_what_it_is_and_not_by_its_form(hub, tmp_path):
    (tmp_path / "runs").mkdir()
    commit = "0" * 40
    assert split_id("runs/f1") == ("runs/f1", None)
    assert split_id("lab/tiny@v1") == ("lab/tiny", "v1")
    assert is_pinned(f"runs/f1@{commit}")  # as recorded by a run that began elsewhere
    assert not any(is_pinned(path) for path in ("lab/tiny", "lab/tiny@v1", f"/lab/tiny@{commit}"))


def test_an_adapter_of_the_hub_is_no_model(hub):
    golden = ROOT / "tests" / "golden" / "peft"
    hub.add("lab/adapter", {path.name: path.read_bytes() for path in golden.iterdir()})
    with pytest.raises(ValueError, match=r"^model\.path: must be a model, got the adapter 'lab/ad"):
        find_model("lab/adapter")


# --- data sets
# ------------------------------------------------------------------------------------------


def test_a_data_set_needs_a_revision_and_is_read_from_the_cache(hub, offline):
    row = json.dumps({"problem": "1 + 1?", "answer": "2"}).encode()
    files = {"README.md": b"x", "data/train.jsonl": row, "data/test.jsonl": row}
    commit = hub.add("lab/sums", files)
    with pytest.raises(ValueError) as error:
        find_data_files("task.args.train", "lab/sums", "train")
    name = f"lab/sums@{commit}"
    assert str(error.value) == (
        "task.args.train: must be NAMESPACE/NAME@REVISION, got 'lab/sums'; the newest commit is "
        + name
    )
    offline()
    (file,) = find_data_files("task.args.train", name, "train")["train"]
    assert file.read_bytes() == row and file.name == "train.jsonl"
    with pytest.raises(ValueError, match=r"^train: must be a file, .*--repo-type dataset --rev"):
        find_data_files("train", "lab/other@v1", "train")
    assert find_data_files("train", "data/train.jsonl", "train") == {}


# --- a run from the hub and back
# ------------------------------------------------------------------------------------------


def test_a_run_of_an_id_resumes_its_commit_and_is_pushed_with_a_card(hub, here, capsys):
    files = {path.name: path.read_bytes() for path in (here / "model").iterdir()}
    commit = hub.add(NAME, files)
    train = ["train", "--config", "train.yaml", "--model.path", NAME, "--run.directory", "hub/run"]
    train += ["--evaluation", json.dumps(EVALUATION)]
    assert main([*train, "--steps", "1"]) == 0
    hub.add(NAME, {**files, "model.safetensors": b"another model"})
    assert main([*train, "--steps", "2"]) == 0
    assert f"path: {NAME}@{commit}" in (here / "hub" / "run" / "config.yaml").read_text()
    (here / "hub" / "run" / "curves.png").write_bytes(b"png")

    export = ["export", "--model", "hub/run", "--output", "hub/exported", "--push", "lab/trained"]
    assert main(export) == 0
    assert capsys.readouterr().out.endswith("uploaded to lab/trained\n")
    ((_, pushed),) = hub.commits["lab/trained"]
    exported = {path.name: path.read_bytes() for path in (here / "hub" / "exported").iterdir()}
    assert pushed == exported and {"model.safetensors", "curves.png"} <= set(pushed)
    card = pushed["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == NAME and front["library_name"] == "transformers"
    for line in (
        f"| Initial model | {NAME}@{commit} |",
        "| Data | luck:Luck counts=",
        "| Method | group_normalize → shape_by_entropy(alpha=0.4, kappa=2.0) |",
        "| Steps | 2 |",
        "|  | run, step 0 | run, step 2 |",
        "| Pass@2 | ",
        "![training curves](curves.png)",
    ):
        assert line in card
    assert "hub/run" not in card  # where it was on this machine


def test_what_cannot_be_pushed_is_one_line(hub, refused, monkeypatch):
    line = refused("export", "--model", "model", "--output", "x", "--push", "lab/x")
    assert line == "push: must be null if the model is no run, got 'lab/x'"
    line = refused("export", "--model", "model", "--output", "x", "--push", "x")
    assert line == "push: must be NAMESPACE/NAME or null, got 'x'"
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", _not_allowed)
    with pytest.raises(ValueError, match=r"^push: must be a repository that .* \(403 Forbidden\);"):
        upload(Path("exported"), "lab/x")


def _not_allowed(*_, **__):
    raise OSError("403 Forbidden\nfor url")
