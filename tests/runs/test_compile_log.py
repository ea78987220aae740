"""The line that says what was compiled, and where compiled programs are kept."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.cli import main as cli
from entropy_rl.runs import compile_log


def test_what_was_compiled_is_said_once_and_by_name(monkeypatch):
    monkeypatch.setattr(compile_log, "_WORTH_TELLING", 0.0)
    said = []

    @jax.jit
    def double_the_sine(x):
        return 2 * jnp.sin(x)

    with compile_log.compile_log() as log:
        double_the_sine(jnp.ones(3))
        log.report(said.append)
        monkeypatch.setattr(compile_log, "_WORTH_TELLING", 1e-9)
        double_the_sine(jnp.ones(3))  # is there already
        log.report(said.append)
    double_the_sine(jnp.ones(4))  # nobody listens any more
    assert len(said) == 1
    found = re.fullmatch(
        r"compiled (\d+) programs in \d+\.\d s \((\d+) from the cache\): (.*)", said[0]
    )
    assert int(found[1]) >= 1 and "double_the_sine" in found[3]


def test_memory_that_a_long_compilation_leaves_is_given_back_before_the_program_runs(monkeypatch):
    order = []
    monkeypatch.setattr(compile_log, "trim_heap", lambda: order.append("trimmed"))

    def run(size):
        jax.jit(lambda x: jax.debug.callback(lambda _: order.append("ran"), jnp.sum(x)))(
            np.ones(size, np.float32)
        )
        jax.effects_barrier()

    with compile_log.compile_log():
        run(3)  # compiled within milliseconds
        monkeypatch.setattr(compile_log, "_WORTH_TELLING", 0.0)
        run(4)
    run(5)
    assert order == ["ran", "trimmed", "ran", "ran"]


def test_what_takes_no_time_is_not_worth_a_line(monkeypatch):
    monkeypatch.setattr(compile_log, "_WORTH_TELLING", 1e6)
    with compile_log.compile_log() as log:
        jax.jit(lambda x: x + 41)(jnp.ones(3))
        log.report(lambda line: 1 / 0)


def test_compiled_programs_are_kept_with_the_users_caches_unless_they_say_where(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    cli._keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    cli._keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "entropy_rl" / "jax")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
