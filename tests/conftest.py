"""Eight virtual CPU devices, no implicit broadcasting between ranks, one compilation cache per
checkout.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Compiling is what the suite spends its time on, in its children too. With 0, programs are compiled
# as for users.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jaxlib

if jaxlib.version.__version_info__ < (
    0,
    11,
):  # later ones do not know the first of these, and abort
    # A device that waits 40 seconds for the others ends the process, by default.
    _FLAGS = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0":  # less than half the time
        _FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", _FLAGS)

import jax
import pytest

gc.set_threshold(100_000, 50, 50)  # tracing makes many objects, few of which are garbage

CACHE = Path(__file__).parents[1] / ".cache" / "jax"
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session", autouse=True)
def forget_programs():
    """Runs of a process share compiled functions; a call of this ends that for earlier ones."""
    from shared_programs import share_programs

    with pytest.MonkeyPatch.context() as patch:
        yield share_programs(patch)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Iterator[Path]:
    """A directory of its own for the runs of a file of tests: `tiny_runs.make_workspace`.

    At the end, every metric of these runs must be in docs/metrics.md.
    """
    from run_records import undocumented_metrics
    from tiny_runs import make_workspace

    directory = make_workspace(tmp_path_factory.mktemp("runs") / "workspace")
    yield directory
    assert undocumented_metrics(directory) == set()


@pytest.fixture
def here(workspace, monkeypatch) -> Path:
    """The working directory of commands that run in the process of the tests, which draw no
    curves.
    """
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(
        "entropy_rl.report.summary.write_curves", lambda directory: directory
    )  # slow
    return workspace


@pytest.fixture(scope="session")
def chat_tokenizer_directory(tmp_path_factory) -> Path:
    """A directory with the tokenizer of `hf_fixtures`, which has a chat template."""
    from hf_fixtures import save_tokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(directory)
    return directory


@pytest.fixture
def tokenizer(chat_tokenizer_directory):
    """That tokenizer, loaded anew: a test may change it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chat_tokenizer_directory)


@pytest.fixture
def refused(here, capsys):
    """Runs a command that must be refused: one line, exit code 2, nothing written. Returns the
    line.
    """

    from entropy_rl.cli.main import main

    def run(*arguments: str, code: int = 2) -> str:
        before = sorted(here.rglob("*"))
        capsys.readouterr()
        assert main(arguments) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"entropy-rl {arguments[0]}: ") and err.endswith("\n")
        assert err.count("\n") == 1 and len(err) < 700, err
        assert [path for path in sorted(here.rglob("*")) if "__pycache__" not in path.parts] == [
            path for path in before if "__pycache__" not in path.parts
        ]
        return err.removeprefix(f"entropy-rl {arguments[0]}: ").rstrip("\n")

    return run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with the launch scripts, for `cloud`."""
    from fake_cloud import make_checkout

    return make_checkout(tmp_path_factory.mktemp("check out"))


@pytest.fixture
def cloud(tmp_path, checkout):
    """A `fake_cloud.Cloud`: the launch scripts among stand-ins for what they call."""
    from fake_cloud import Cloud

    with Cloud(tmp_path, checkout) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def decoder():
    """`policies.tiny_policy` and parameters of it."""
    from policies import tiny_policy

    policy = tiny_policy()
    return policy, policy.init(jax.random.key(3))


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
