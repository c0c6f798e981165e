"""The command line: `python -m training.checkpoint ls|verify|export|rank`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from training.closed_pipe import give_up_output

EXIT_CODES = "exit codes: 0 done, 1 damage found, 2 the request can't be met"
PLACES = "a run directory, its folder of checkpoints, or a single checkpoint"

LS = """\
Print a line for every checkpoint, the newest first: its step, the tokens seen until then, when it was written, on how many ranks
and in which placement, its size, why the run keeps it, and whether names and sizes of its files are right (ok); it exits
with 1 if those of a checkpoint are not. What is in the files is read by verify only.

  $ python -m training.checkpoint ls runs/cpt
  $ python -m training.checkpoint ls runs/* --json
"""
VERIFY = """\
Read every file of the checkpoints, compare it with the hash in the manifest, and report each that is missing, cut or changed. Of a run
it also says from which checkpoint it would continue.

  $ python -m training.checkpoint verify runs/cpt
  $ python -m training.checkpoint verify runs/* --newest
"""
EXPORT = """\
Write what other software loads, from the files alone: without a GPU, without the ranks that trained, and in little memory, as weights
are read, computed and written one by one. The checkpoint is verified first, and so is the base.

  adapter    for PEFT: the adapter, with palimpsest.json (all of an adapter is in memory at once)
  merged     for transformers: the base with the adapter added to it
  full       for transformers: the model, after full finetuning
  model      merged or full, whichever the run has
  auto       what the run itself exports at its end

  $ python -m training.checkpoint export runs/cpt
  $ python -m training.checkpoint export runs/cpt/checkpoints/4000 --format merged --out merged-4000
"""
RANK = """\
Decompose every matrix of the model (SVD) before training, at the checkpoint, and their difference; tell the smallest k whose k largest
singular values have 90 % of the sum of squares, and write it to RUN/weights/rank-STEP.json. The checkpoint is verified first, and so
is the base. One matrix is in memory at a time, and a second start goes on where the first was stopped.

  $ python -m training.checkpoint rank runs/cpt
  $ python -m training.checkpoint rank runs/cpt --step 4000 --modules '*_proj' --device cuda
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser.print_help()
        return 2
    options = parser.parse_args(arguments)
    try:
        code = _run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except (BrokenPipeError, SystemExit):
        return give_up_output()  # the latter is how rich puts the former


def _run(options: argparse.Namespace) -> int:
    # Imported here: looking at checkpoints needs no torch, and --help nothing at all.
    if options.command == "export":
        from training.checkpoint.export import Request, export_checkpoint

        return export_checkpoint(
            Request(
                checkpoint=options.checkpoint,
                out=options.out,
                format=options.format,
                dtype=options.dtype,
                base=options.base,
                tokenizer=options.tokenizer,
                max_shard_size=options.max_shard_size,
            )
        )
    if options.command == "rank":
        from evals.weights.command import parse_modules
        from training.checkpoint.rank import Request as RankRequest
        from training.checkpoint.rank import rank_checkpoints

        return rank_checkpoints(
            RankRequest(
                checkpoint=options.checkpoint,
                step=options.step,
                against=options.against,
                base=options.base,
                share=options.share,
                modules=parse_modules(options.modules),
                only_change=options.only_change,
                device=options.device,
            )
        )
    from training.checkpoint.commands import list_checkpoints, verify_checkpoints

    if options.command == "ls":
        return list_checkpoints(options.paths, as_json=options.json)
    return verify_checkpoints(options.paths, only_newest=options.newest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.checkpoint", description="Look at checkpoints, check them, make models of them, see what training changed.",
        epilog=EXIT_CODES,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="ls|verify|export|rank")

    ls = _command(commands, "ls", "which checkpoints there are", LS)
    ls.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=PLACES)
    ls.add_argument("--json", action="store_true", help="print them as a JSON array")

    verify = _command(commands, "verify", "read them, and report all that is damaged", VERIFY)
    verify.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=PLACES)
    verify.add_argument("--newest", action="store_true", help="only the newest checkpoint of each path")

    export = _command(commands, "export", "an adapter or a model for other software", EXPORT)
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=f"{PLACES}; of several the newest good one")
    export.add_argument("--out", type=Path, metavar="DIR", help="a new or empty folder (default: RUN/export-STEP)")
    export.add_argument(
        "--format",
        choices=("auto", "adapter", "merged", "full", "model"),
        default="auto",
        help="see above (default: auto)",
    )
    export.add_argument(
        "--dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto",
        help="of what is written. auto: as the run has it, so that the files are those of its own export; others are rounded once, "
        "from the fp32 masters in the checkpoint (default: auto)",
    )  # fmt: skip
    export.add_argument(
        "--base", type=Path, metavar="DIR", help="where the base is now (default: model.base of the run)"
    )
    export.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="where the tokenizer is now (default: data.tokenizer of the run)"
    )
    export.add_argument(
        "--max-shard-size", type=_bytes, default="5GB", metavar="SIZE", help="largest weight file (default: 5GB)"
    )

    rank = _command(commands, "rank", "the rank of the weight change", RANK)
    rank.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=f"{PLACES}; of several all of them")
    rank.add_argument("--step", type=int, help="only the checkpoint of this step")
    rank.add_argument(
        "--against", type=int, metavar="STEP", help="compare with this checkpoint (default: with the base)"
    )
    rank.add_argument("--base", type=Path, metavar="DIR", help="where the base is now (default: model.base of the run)")
    rank.add_argument("--share", type=float, default=0.9, help="of the squared spectrum (default: %(default)s)")
    rank.add_argument(
        "--modules", default="", metavar="PATTERN,...", help="modules or weights, such as *_proj (default: all)"
    )
    rank.add_argument(
        "--only-change", action="store_true", help="leave out W before and W at the checkpoint, most of the time"
    )
    rank.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    return parser


def _bytes(text: str) -> int:
    """A size such as 500MB or 5GB."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number, unit = text[:-2].strip(), text[-2:].upper()
    try:
        size = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write a number and KB, MB, GB or TB, such as 5GB")
    return size


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )


if __name__ == "__main__":
    sys.exit(main())
