"""What ends a verb: one line and an exit code, and no memory left."""

import os
import pwd
import re
import subprocess
import sys

import pytest

from entropy_rl.cli import main as cli
from entropy_rl.cli.failure import error_line, exit_code, failure_line, is_out_of_memory
from entropy_rl.config.registry import import_object
from entropy_rl.config.values import leaf_fields
from entropy_rl.runs.smollm2 import cache_directory
from entropy_rl.tasks.math.sets import data_root


class JaxRuntimeError(RuntimeError):
    """As jax names it."""


GPU = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68719476736 bytes.\n"
    "BufferAssignment stats:\n  parameter allocation: 2.10GiB\n" + "  more\n" * 40
)
TPU = (
    "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 12.00G. That was "
    "not possible. There are 3.71G free.; (0x0x0_HBM0)"
)
CPU = "RESOURCE_EXHAUSTED: Out of memory allocating 8796093022208 bytes."


def raised_in(module: str, error: BaseException) -> BaseException:
    """The error as if a program that this module calls had raised it."""
    import importlib.util

    file = importlib.util.find_spec(module).origin
    code = compile("raise error", file, "exec")
    try:
        exec(code, {"error": error})
    except BaseException as found:
        return found


@pytest.mark.parametrize("text", [GPU, TPU, CPU])
@pytest.mark.parametrize(
    ("module", "doing", "setting"),
    [
        ("entropy_rl.trainer.updates", "an update", "batching.max_tokens_per_micro_batch"),
        ("entropy_rl.learner.update", "an update", "model.remat"),
        ("entropy_rl.trainer.prepare", "an update", "batching.max_tokens_per_micro_batch"),
        ("entropy_rl.experience.sampler", "sampling", "decoding.slots"),
        ("entropy_rl.rollout.chunks", "sampling", "decoding.memory_share"),
        ("entropy_rl.commands.sample", "sampling", "max_new_tokens"),
        ("entropy_rl.evaluation.sampling", "an evaluation", "evaluation.rows_per_call"),
        ("entropy_rl.runs.load_model", "loading the model", "mesh.fsdp"),
        ("entropy_rl.runs.checkpoint", "a checkpoint", "mesh.fsdp"),
        ("entropy_rl.models.hf", "this run", "batching.max_tokens_per_micro_batch"),
    ],
)
def test_out_of_memory_says_where_and_which_settings_to_lower(text, module, doing, setting):
    error = raised_in(module, JaxRuntimeError(text))
    line = failure_line(error)
    assert line.startswith(f"out of memory on the device in {doing}")
    assert setting in line and "\n" not in line and len(line) < 300
    assert exit_code(error) == 1


@pytest.mark.parametrize(
    ("verb", "module", "named"),
    [
        ("train", "trainer.updates", {"batching.max_tokens_per_micro_batch", "optimizer.offload"}),
        ("train", "trainer.stack", {"decoding.slots", "rollout.max_new_tokens"}),
        ("sft", "commands.sft", {"batching.max_tokens_per_micro_batch", "model.remat"}),
        ("sample", "commands.sample", {"max_new_tokens"}),
        ("evaluate", "evaluation.sampling", {"evaluation.rows_per_call", "decoding.slots"}),
        ("analyze", "evaluation.score_texts", {"max_tokens_per_micro_batch"}),
        ("data select", "evaluation.score_texts", {"max_tokens_per_micro_batch"}),
    ],
)
def test_only_settings_of_the_verb_are_named(verb, module, named):
    config = import_object(verb, cli.config_classes()[verb])
    line = failure_line(raised_in(f"entropy_rl.{module}", JaxRuntimeError(CPU)), config)
    _, _, advice = line.removeprefix("out of memory on ").partition(": ")
    found = set(re.findall(r"[a-z_]+(?:\.[a-z_]+)+|\bmax_\w+", advice))
    assert named <= found <= {path for path, _ in leaf_fields(config)}
    assert verb != "sft" or "optimizer.offload" not in found  # which it refuses


@pytest.mark.parametrize(
    ("text", "size"),
    [(GPU, "68719476736 bytes"), (CPU, "8796093022208 bytes"), ("OOM", None)],
)
def test_the_bytes_that_were_asked_for_are_named(text, size):
    line = failure_line(JaxRuntimeError(text))
    assert (f", which asked for {size}: " in line) if size else ("asked for" not in line)


def test_memory_of_the_host_is_named_as_such():
    error = MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000000000,)")
    line = failure_line(error)
    assert line.startswith("out of memory on the host in this run, which asked for 7.28 TiB: ")
    assert exit_code(error) == 1


def test_other_errors_of_jax_are_not_taken_for_it():
    for text in ("INTERNAL: Failed to load CUDA", "DEADLINE_EXCEEDED: Barrier timed out"):
        assert not is_out_of_memory(JaxRuntimeError(text))
    assert not is_out_of_memory(RuntimeError(GPU))


@pytest.mark.parametrize("error", [JaxRuntimeError(GPU), MemoryError("")])
@pytest.mark.parametrize("wanted", ["", "0", "1"])
def test_a_verb_that_runs_out_of_memory_ends_with_1_and_one_line(
    error, wanted, monkeypatch, capsys
):
    def program(_):
        raise error

    monkeypatch.setenv("ENTROPY_RL_TRACEBACK", wanted)
    monkeypatch.setattr("entropy_rl.commands.export.main", program)
    arguments = ["export", "--model", "x", "--output", "y"]
    if wanted == "1":
        with pytest.raises(type(error)):
            cli.main(arguments)
        return
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("entropy-rl export: out of memory on the ")
    assert captured.err.count("\n") == 1


def test_a_long_value_is_not_echoed_whole():
    assert len(error_line(ValueError("x" * 10**7))) < 3000


def test_a_mistake_in_a_program_keeps_its_traceback(monkeypatch):
    for error in (TypeError("a"), KeyError("a"), RuntimeError("a"), AssertionError()):
        assert failure_line(error) is None


def test_help_does_not_import_numpy_or_jax():
    import subprocess

    code = (
        "import sys; from entropy_rl.cli.main import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('numpy', 'jax') if n in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.strip().endswith("[]")


# --- output and caches ----------------------------------------------------------------------------


def entropy_rl(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "entropy_rl", *arguments],
        env=os.environ | env,
        capture_output=True,
        text=True,
        encoding="latin-1",
    )


def test_a_terminal_without_the_characters_of_the_help_gets_it_with_escapes():
    done = entropy_rl("train", "--help", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and "\\u03bb" in done.stdout


def test_a_full_device_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "entropy_rl", "--version"], stdout=full, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (1, b"entropy-rl: stdout: No space left on device\n")


def test_without_a_place_for_compiled_programs_one_line_says_so(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cli._keep_compiled_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert caplog.messages == [
        "compiled programs are not kept: set JAX_COMPILATION_CACHE_DIR to a directory"
    ]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli._keep_compiled_programs()
    assert os.environ.pop("JAX_COMPILATION_CACHE_DIR") == str(tmp_path / "entropy_rl" / "jax")


def test_a_user_without_a_home_gets_no_directory_named_tilde(tmp_path, monkeypatch, caplog):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    cli._keep_compiled_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert len(caplog.messages) == 1
    line = "XDG_CACHE_HOME: must be an absolute path, got '~/.cache'"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        cache_directory()
    with pytest.raises(ValueError, match=r"^data_dir: must be absolute without a home directory"):
        data_root(None)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # invalid by the specification
    cli._keep_compiled_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
