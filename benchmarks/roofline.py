"""How near decoding, training and the whole RL step come to what the hardware must pay.

    python benchmarks/roofline.py --shape 1.5b --output roofline.json
    python benchmarks/roofline.py decode --shape 7b --batch 64 128 --context 4096
    python benchmarks/roofline.py train --shape 1.5b --remat full --micro-batch 32768
    JAX_PLATFORMS=cpu python benchmarks/roofline.py --shape tiny   # tries the program only

It uses one device. First it measures what the device can do: bytes per second of scaling a large
array, and FLOP per second of large matrix products. What a work must move and compute is counted
from the shapes, on tokens that count (entropy_rl/planning/counting.py). The roofline is the time
for that at the measured rates, and the share of it is what a work achieves. Weights are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library need not be installed

WORKS = ("decode", "train", "step")
_TINY = dict(
    decode=[4, 8], train=[8], step=[8], group=4, prompt=8, context=32, steps=4, micro_batch=128
)
_REAL = dict(
    decode=[64, 256],
    train=[128],
    step=[256],
    group=8,
    prompt=256,
    context=1024,
    steps=64,
    micro_batch=16384,
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: whole numbers >= 1")
    return int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = _Parser(
        prog="roofline.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "works",
        nargs="*",
        metavar="WORK",
        help="decode, train or step; all of them if none is named",
    )
    add("--shape", choices=("tiny", "1.5b", "7b"), default="1.5b", help="Qwen2.5's; default 1.5b")
    add(
        "--layers",
        type=_count,
        help="fewer layers; default all, and of 7b in training as many as fit",
    )
    add(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="default bfloat16, on CPUs float32; masters are float32",
    )
    add(
        "--attention",
        default="auto",
        help="of whole rows: auto, xla, cudnn or splash; default auto",
    )
    add(
        "--decode-attention",
        choices=("auto", "xla", "ragged"),
        default="auto",
        help="of new tokens",
    )
    add("--remat", default="dots", choices=("none", "dots", "full"), help="default dots")
    add("--fused-loss", action="store_true", help="loss and gradient of the head in one pass")
    add("--batch", type=_count, nargs="+", help="rows; default: decode 64 256, train 128, step 256")
    add("--group", type=_count, help="rows that share a prompt; default 8")
    add("--prompt", type=_count, help="tokens of a prompt; default 256")
    add(
        "--context",
        type=_count,
        help="decode: tokens attended to; else the longest row; default 1024",
    )
    add(
        "--mean",
        type=_count,
        help="mean tokens of a completion in train and step; default half of the limit",
    )
    add("--full", action="store_true", help="every completion in train and step reaches the limit")
    add("--micro-batch", type=_count, help="packed tokens; default 16384")
    add("--steps", type=_count, help="steps of a measurement of decode; default 64")
    add("--room", type=_count, help="columns of the cache in decode; default just enough")
    add("--runs", type=_count, default=5, help="measurements of each work; default 5")
    add("--output", type=Path, help="JSON file for all that was measured")
    options = parser.parse_args(arguments)
    for work in options.works:
        if work not in WORKS:
            parser.error(f"{work!r} is not allowed; allowed: {', '.join(WORKS)}")
    if options.full and options.mean:
        parser.error("--mean: not allowed with --full")
    defaults = _TINY if options.shape == "tiny" else _REAL
    for name in ("group", "prompt", "context", "micro_batch", "steps"):
        if getattr(options, name) is None:
            setattr(options, name, defaults[name])
    options.batches = {work: options.batch or defaults[work] for work in WORKS}
    options.works = [work for work in WORKS if work in options.works] or list(WORKS)
    options.command = shlex.join(
        ["roofline.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    if options.context <= options.prompt:
        parser.error(
            f"--context: {options.context} is not allowed; allowed: > {options.prompt}, the prompt"
        )
    least = 1 if options.works == ["decode"] else 2  # training compares the rows of a group
    if options.group < least:
        parser.error(f"--group: {options.group} is not allowed; allowed: >= {least}")
    for rows in (rows for work in options.works for rows in options.batches[work]):
        if rows % options.group:
            parser.error(
                f"--batch: {rows} is not allowed; allowed: multiples of --group, {options.group}"
            )
    if options.micro_batch < options.context:
        parser.error(
            f"--micro-batch: {options.micro_batch} is not allowed; allowed: >= --context, one row"
        )
    return options


def plan(options: argparse.Namespace, work: str, memory: int | None) -> Any:
    """The `Setup` of a work, but for the rates of the machine.

    Raises:
      ValueError: If something is unknown here, or does not fit.
    """
    import jax
    import jax.numpy as jnp
    import roofline_decode
    import roofline_model as model
    from roofline_setup import Setup

    from entropy_rl.config.rollout import DecodingConfig
    from entropy_rl.models.decoder import make_policy

    whole = model.SHAPES[options.shape]
    dtype = options.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    layers = whole.num_layers if options.layers is None else options.layers
    if layers > whole.num_layers:
        raise ValueError(f"--layers: {layers} is not allowed; allowed: 1 to {whole.num_layers}")
    if options.shape == "7b" and work != "decode" and options.layers is None:
        if memory is None:
            raise ValueError("--layers: the device hides its memory; allowed: a number")
        # The rollout of a step takes its cache before the update takes its activations.
        cache = DecodingConfig().memory_share * memory if work == "step" else 0
        of_update = (options.micro_batch, options.remat, jnp.dtype(dtype).itemsize)
        layers = model.layers_that_fit(
            whole, memory, lambda c: model.step_bytes(c, *of_update, cache)
        )
    config = dataclasses.replace(whole, num_layers=layers)
    attentions = dict(attention=options.attention, decode_attention=options.decode_attention)
    setup = Setup(
        config=config,
        policy=make_policy(config, jnp.dtype(dtype), options.remat, **attentions),
        dtype=dtype,
        memory=memory,
        group=options.group,
        prompt=options.prompt,
        context=options.context,
        mean=None
        if options.full
        else options.mean or max(1, (options.context - options.prompt) // 2),
        runs=options.runs,
    )
    if work == "decode":
        for rows in options.batches[work]:
            roofline_decode.check_memory(setup, rows, options.steps, options.room)
    else:
        model.check_fits(work, model.state_bytes(config), memory, "fewer --layers")
    return setup


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what the options ask for; what runs out of memory does not stop the rest.

    Raises:
      ValueError: If something is unknown here, or does not fit.
    """
    import roofline_decode
    import roofline_machine
    import roofline_model
    import roofline_train
    from jax.errors import JaxRuntimeError

    from entropy_rl.models.attention import check_backend

    check_backend(options.attention, options.decode_attention)
    memory = roofline_machine.memory_of_device()
    # What cannot work is found before anything runs.
    setups = {work: plan(options, work, memory) for work in options.works}
    machine = roofline_machine.measure_machine(options.runs)
    all_layers = roofline_model.SHAPES[options.shape].num_layers
    lines, failures = [], []
    for work, setup in setups.items():
        setup = dataclasses.replace(setup, machine=machine)
        for rows in options.batches[work]:
            gc.collect()  # nothing of the last work may take memory from this one
            try:
                if work == "decode":
                    results = roofline_decode.decode(setup, rows, options.steps, options.room)
                else:
                    run = {"train": roofline_train.train, "step": roofline_train.step}[work]
                    results = run(setup, rows, options.micro_batch, options.fused_loss)
            except JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                reason = "out of memory; allowed: smaller shapes, or fewer --layers"
                failures.append({"what": f"{work}, B={rows}", "error": reason})
                continue
            layers = {"layers": setup.config.num_layers, "all_layers": all_layers}
            lines += [{"work": work, **result, **layers} for result in results]
    told = ("output", "command", "works", "batch", "layers", "dtype")
    return {
        "command": options.command,
        **roofline_machine.describe(),
        "machine": machine._asdict(),
        "options": {"dtype": setup.dtype}
        | {k: v for k, v in vars(options).items() if k not in told},
        "measurements": lines,
        "failures": failures,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    options = parse(arguments)
    if options.output is not None and not options.output.absolute().parent.is_dir():
        print(f"roofline.py: --output: {options.output.parent} is not a directory", file=sys.stderr)
        return 2
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # on GPUs; before jax starts
    from roofline_table import table

    try:
        result = measure(options)
    except ValueError as error:
        print(f"roofline.py: {error}", file=sys.stderr)
        return 2
    print(table(result))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
