"""Command line `entropy-rl VERB`: parse and check the config, run the verb's program.

Exit codes: 0 done; 2 bad input, with one line that says what; 1 the machine said no (a full disk,
no rights, no memory, a plan that does not fit); 128 + N stopped by signal N with everything saved.
`cli/failure.py` makes the line.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from entropy_rl.cli.failure import (
    error_line,
    exit_code,
    failure_line,
    is_out_of_memory,
    wants_traceback,
)
from entropy_rl.config.files import check_creatable, user_cache
from entropy_rl.config.registry import import_object
from entropy_rl.config.values import unknown
from entropy_rl.escape import echo, printable
from entropy_rl.version import __version__

# verb -> (config class, program `main(config)`, description). A verb of two words belongs to a
# group.
_VERBS = {
    "train": (
        "entropy_rl.config.train:TrainConfig",
        "entropy_rl.train:main",
        "reinforcement learning; the same command again resumes the run",
    ),
    "train-stacked": (
        "entropy_rl.config.stack:StackConfig",
        "entropy_rl.commands.train_stacked:main",
        "several LoRA runs together, on one frozen base",
    ),
    "sft": (
        "entropy_rl.config.sft:SFTConfig",
        "entropy_rl.commands.sft:main",
        "supervised fine-tuning on conversations, or DPO on pairs of them",
    ),
    "sample": (
        "entropy_rl.commands.sample:SampleConfig",
        "entropy_rl.commands.sample:main",
        "stream one completion to the terminal, each token shaded by its entropy",
    ),
    "plan": (
        "entropy_rl.config.plan:PlanConfig",
        "entropy_rl.commands.plan:main",
        "compile a run without its devices; memory and time per step",
    ),
    "plan-sft": (
        "entropy_rl.config.plan:PlanSFTConfig",
        "entropy_rl.commands.plan:plan_sft",
        "the same for supervised fine-tuning and DPO",
    ),
    "evaluate": (
        "entropy_rl.config.evaluate:EvaluateConfig",
        "entropy_rl.evaluate:main",
        "Pass@K of a model or a run; the same command again resumes",
    ),
    "compare": (
        "entropy_rl.commands.compare:CompareConfig",
        "entropy_rl.commands.compare:main",
        "two evaluations: paired tests, and controls for length and accuracy",
    ),
    "study": (
        "entropy_rl.config.study:StudyConfig",
        "entropy_rl.commands.study:main",
        "a grid of recipes and seeds, with verdicts on hypotheses registered before",
    ),
    "analyze": (
        "entropy_rl.commands.analyze:AnalyzeConfig",
        "entropy_rl.commands.analyze:main",
        "entropy of pivotal tokens, reflective actions and rare behaviors",
    ),
    "report": (
        "entropy_rl.commands.report:ReportConfig",
        "entropy_rl.commands.report:main",
        "runs on one page of HTML, with every token of their responses",
    ),
    "debug-update": (
        "entropy_rl.commands.debug_update:DebugUpdateConfig",
        "entropy_rl.commands.debug_update:main",
        "find the first non-finite value of a skipped update",
    ),
    "export": (
        "entropy_rl.commands.export:ExportConfig",
        "entropy_rl.commands.export:main",
        "the newest checkpoint of a run as a Hugging Face directory",
    ),
    "schema": (
        "entropy_rl.commands.schema:SchemaConfig",
        "entropy_rl.commands.schema:main",
        "JSON Schema of the config files of a verb, for editors",
    ),
    "data list": (
        "entropy_rl.commands.data:ListConfig",
        "entropy_rl.commands.data:list_sets",
        "the published math sets, and which of them are prepared here",
    ),
    "data prepare": (
        "entropy_rl.commands.data:PrepareConfig",
        "entropy_rl.commands.data:prepare",
        "a published set, or a file of your own, as an array_record data set",
    ),
    "data show": (
        "entropy_rl.commands.data:ShowConfig",
        "entropy_rl.commands.data:show",
        "the first problems of a prepared set or a file",
    ),
    "data overlap": (
        "entropy_rl.commands.data_overlap:OverlapConfig",
        "entropy_rl.commands.data_overlap:overlap",
        "which test problems occur in a training set, exactly or in part",
    ),
    "data select": (
        "entropy_rl.commands.data_select:SelectConfig",
        "entropy_rl.commands.data_select:select",
        "reasoning texts that a model finds probable, whatever the length of their steps",
    ),
    "data prompts": (
        "entropy_rl.commands.data_prompts:PromptsConfig",
        "entropy_rl.commands.data_prompts:prompts",
        "the first prompts of a recipe exactly as its model sees them",
    ),
}


# verb -> what its program checks before it needs a device, for `--print_config`
_CHECKS = {
    "train": "entropy_rl.trainer.check_config:check_config",
    "train-stacked": "entropy_rl.commands.train_stacked:check_config",
    "plan": "entropy_rl.commands.plan:check_config",
    "plan-sft": "entropy_rl.commands.plan:check_sft_config",
    "sft": "entropy_rl.commands.sft:check_config",
    "sample": "entropy_rl.commands.sample:check_config",
    "evaluate": "entropy_rl.evaluate:check_config",
    "compare": "entropy_rl.commands.compare:check_config",
    "study": "entropy_rl.commands.study:check_config",
    "analyze": "entropy_rl.commands.analyze:check_config",
    "export": "entropy_rl.commands.export:check_config",
    "data select": "entropy_rl.commands.data_select:check_config",
}


def config_classes() -> dict[str, str]:
    """Verb -> its config class, as `module:class`."""
    return {verb: config for verb, (config, _, _) in _VERBS.items()}


class _Printable(logging.Formatter):
    """Escapes control characters of log messages, which may quote data."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


log = logging.getLogger(__name__)

_ON_SEVERAL_HOSTS = ("train", "evaluate")
# Those that need devices, and would run in each of several processes by itself.
_IN_ONE_PROCESS = (
    *("train-stacked", "sft", "sample", "study", "analyze", "debug-update", "export"),
    "data select",
)
_CACHE = "JAX_COMPILATION_CACHE_DIR"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program `entropy-rl` and return the exit code."""
    # Not every terminal has the characters of the help, of a data set or of a model.
    if isinstance(sys.stdout, io.TextIOWrapper):  # in a notebook it is something else
        sys.stdout.reconfigure(errors="backslashreplace")
    if "_ARGCOMPLETE" in os.environ:  # set by argcomplete, where the shell completes a command
        from entropy_rl.cli.completion import complete

        complete(config_classes())
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--version"], ["-V"]):
        return _show(__version__)
    if arguments[:1] == ["help"]:  # `help VERB` is `VERB --help`
        arguments = [*arguments[1:], "--help"]
    first = arguments[0] if arguments else ""
    group = [verb for verb in _VERBS if verb.startswith(f"{first} ")]
    rest = arguments[1:] if group else arguments
    if not rest or rest[0] in ("-h", "--help"):
        return _show(_usage(group or list(_VERBS)))
    words = 2 if group else 1
    verb = " ".join(arguments[:words])
    if verb not in _VERBS:
        echo(f"entropy-rl: {unknown('verb', verb, _VERBS)}", file=sys.stderr)
        return 2
    return run_verb(verb, arguments[words:])


def _show(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return _without_reader()
    except OSError as error:  # of a full device
        _end_output()
        echo(f"entropy-rl: stdout: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _without_reader() -> int:
    """The exit code where the reader of our output has exited, such as `| head`."""
    _end_output()
    return 128 + signal.SIGPIPE


def _end_output() -> None:
    """Drop what cannot be written to stdout, which Python tries again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(verbs: Sequence[str]) -> str:
    lines = "\n".join(f"  {verb:13} {_VERBS[verb][2]}" for verb in verbs)
    return (
        f"usage: entropy-rl VERB [--config FILE] [--dotted.path VALUE ...]\n\n{lines}\n\n"
        "`entropy-rl VERB --help` or `entropy-rl help VERB` explains every setting; `entropy-rl -V`"
        "\nprints the version."
    )


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Run one verb; turn expected errors into one line and an exit code.

    A process of several that fails ends here, without a return; see `multihost.leave`.
    """
    code = _run(verb, arguments)
    if code != 0 and _is_one_of_several():
        from entropy_rl.distributed import multihost as hosts

        hosts.leave(code)
    return code


def _run(verb: str, arguments: Sequence[str]) -> int:
    from entropy_rl.cli.parse import parse_config
    from entropy_rl.runs.preemption import Interrupted

    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if "" not in sys.path:
        sys.path.insert(0, "")  # for a user's `module:function` in the working directory
    _quiet_libraries()
    _keep_compiled_programs()
    try:
        # The config comes first, so that help and config errors need no import of jax.
        config, program, _ = _VERBS[verb]
        config = parse_config(import_object("verb", config), verb, arguments, _check_of(verb))
        program = import_object("verb", program)
        if verb in _ON_SEVERAL_HOSTS:
            from entropy_rl.distributed import multihost as hosts

            hosts.join()
        elif verb in _IN_ONE_PROCESS:
            from entropy_rl.distributed import multihost as hosts

            hosts.refuse(verb)
        program(config)
        sys.stdout.flush()  # a reader that has exited is noticed here, not at the exit
    except Interrupted as interrupted:
        echo(f"entropy-rl {verb}: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    except KeyboardInterrupt:
        echo(f"entropy-rl {verb}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _without_reader()
    except Exception as error:
        if _is_of_other_host(error):
            from entropy_rl.distributed import multihost as hosts

            # The others may be gone: to leave in good order would be to wait for them.
            with hosts.leaving:
                echo(
                    f"entropy-rl {verb}: process {hosts.index()} of {hosts.count()} cannot go on: "
                    f"{error_line(error):.300}; if another process has ended, its log says why",
                    file=sys.stderr,
                )
                os._exit(1)
        line = failure_line(error, type(config))
        if line is None or wants_traceback():
            if not _is_one_of_several():
                raise
            traceback.print_exc()
            return exit_code(error)
        echo(f"entropy-rl {verb}: {line}", file=sys.stderr)
        return exit_code(error)
    return 0


def _check_of(verb: str) -> Callable[[Any], None] | None:
    """Return what checks the config of a verb, which imports jax when it is called."""
    path = _CHECKS.get(verb)
    return None if path is None else lambda config: import_object("verb", path)(config)


def _is_one_of_several() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")  # not imported yet where the config was refused
    return jax is not None and jax.distributed.is_initialized()


def _is_of_other_host(error: Exception) -> bool:
    """Whether the connection to other hosts may have failed; it is so for any error of jax but
    out of memory.
    """
    if type(error).__name__ != "JaxRuntimeError" or is_out_of_memory(error):
        return False
    from entropy_rl.distributed import multihost as hosts

    return hosts.count() > 1


def _keep_compiled_programs() -> None:
    """Set JAX's compilation cache to the user's cache directory, unless it is set already."""
    if _CACHE not in os.environ:
        try:
            directory = user_cache() / "jax"
            check_creatable(directory)
        except (OSError, ValueError):  # jax would warn of each program
            log.warning("compiled programs are not kept: set %s to a directory", _CACHE)
            return
        os.environ[_CACHE] = str(directory)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _quiet_libraries() -> None:
    """Raise the log levels of libraries, whose messages would bury those of the run."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("jax").setLevel(logging.ERROR)
    for name in ("absl", "orbax", "asyncio"):  # their errors are raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # When a write fails, every thread of orbax warns about it.
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _show_unraisable


def _show_unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main())
