"""`entropy-rl <verb>`: reads the config, checks it, and calls the program.

Exit codes: 0 done; 2 bad input, with one line that says what; 1 the machine said no (a full disk, no
rights); 128 + N stopped by signal N with everything saved.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from entropy_rl.factories import unknown
from entropy_rl.version import __version__

# verb -> (its config, what it does); the module of the same name has `main(config)`.
_VERBS = {
    "train": (
        "entropy_rl.config:TrainConfig",
        "reinforcement learning; the same command again resumes the run",
    ),
    "warmstart": (
        "entropy_rl.warmstart_config:WarmstartConfig",
        "supervised training from scratch on a task's own demonstrations",
    ),
    "evaluate": ("entropy_rl.config:EvaluateConfig", "Pass@K of a model or a run"),
    "export": (
        "entropy_rl.export:ExportConfig",
        "the newest checkpoint of a run as a Hugging Face directory",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program `entropy-rl`; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        verbs = "\n".join(f"  {verb:10} {text}" for verb, (_, text) in _VERBS.items())
        print(f"usage: entropy-rl VERB [--config FILE] [--dotted.path VALUE ...]\n\n{verbs}\n")
        print("`entropy-rl VERB --help` explains every setting.")
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] not in _VERBS:
        print(f"entropy-rl: {unknown('verb', arguments[0], _VERBS)}", file=sys.stderr)
        return 2
    return run_verb(arguments[0], arguments[1:])


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Runs one verb and turns what can go wrong into one line and an exit code."""
    from entropy_rl.config_file import parse_config
    from entropy_rl.interrupt import Interrupted

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if "" not in sys.path:
        sys.path.insert(0, "")  # a user's own `module:function` lies where they are
    _quiet_libraries()
    try:
        # The config comes first: help, and what is wrong with it, need not wait for jax to be imported.
        module, _, name = _VERBS[verb][0].partition(":")
        config = parse_config(getattr(importlib.import_module(module), name), verb, arguments)
        importlib.import_module(f"entropy_rl.{verb}").main(config)
    except Interrupted as interrupted:
        print(f"entropy-rl {verb}: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    except KeyboardInterrupt:
        print(f"entropy-rl {verb}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read our output has gone, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("ENTROPY_RL_TRACEBACK"):
            raise
        print(f"entropy-rl {verb}: {_in_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, _BAD_INPUT) else 1
    return 0


_BAD_INPUT = (ValueError, FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__


def _quiet_libraries() -> None:
    """Libraries report their own doings at a level that would bury a run's own lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local: a mistyped path must not ask a hub
    logging.getLogger("jax").setLevel(logging.ERROR)
    for name in ("absl", "orbax", "asyncio"):  # what they report as errors is raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # When a write fails, the threads of orbax say so once more, each for itself.
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _show_unraisable


def _show_unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main())
