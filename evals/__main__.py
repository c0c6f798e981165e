"""The command line: `python -m evals run | report | collect | claims | rank`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evals.agreement import CommonError
from evals.errors import EvalError
from evals.ranks import leave

if TYPE_CHECKING:
    from rich.console import Console

    from evals.score_request import Request

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

USAGE_ERROR = 2
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 = done, 2 = the input is wrong."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.command(parsed)
    except CommonError as error:
        if _is_first():
            print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except EvalError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _is_first() -> bool:
    """Whether this process is the one of several that tells what all know."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _run(args: argparse.Namespace) -> None:
    from evals.score_folder import score_folder
    from evals.score_table import notes, table

    try:
        request = _request(args)
    except EvalError as error:
        raise CommonError(str(error)) from error  # all processes read the same command line
    try:
        result = score_folder(request)
    except KeyboardInterrupt:
        where = f"what was answered is in {request.kept}; start the same command to go on from there"
        if _is_first():
            print(
                f"interrupted; {where if request.kept is not None else 'nothing is kept without --out or --run'}",
                file=sys.stderr,
            )
        raise SystemExit(INTERRUPTED) from None
    if _is_first():
        _console().print(table(result))
        for note in notes(result):
            print(note)


def _request(args: argparse.Namespace) -> Request:
    from evals.harness.specs import parse_specs, resampled
    from evals.score_request import Request, parse_task

    if (args.run is None) != (args.step is None):
        raise EvalError("--run and --step belong together")
    if not args.task and not args.suite:
        raise EvalError("nothing to score; name a --suite, e.g. forgetting, or a --task on held-out text")
    return Request(
        model=args.model,
        tasks=dict(parse_task(text, args.max_examples) for text in args.task),
        suites=resampled(parse_specs(args.suite), samples=args.samples, temperature=args.temperature),
        data_dir=args.data,
        allow_unisolated=args.no_sandbox_i_know,
        base=args.base,
        tokenizer=args.tokenizer,
        seq_len=args.seq_len,
        batch_tokens=args.batch_tokens,
        device=args.device,
        dtype=args.dtype,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        out=args.out,
        run=args.run,
        step=args.step,
    )


def _report(args: argparse.Namespace) -> None:
    from evals.report.write import summary_table, write_report

    report, page = write_report(args.root, args.out)
    _console().print(summary_table(report))
    for name, reason in report["left_out"].items():
        print(f"left out: {name}: {reason}")
    print(f"{report['headline']}\nreport: {page}")


def _collect(args: argparse.Namespace) -> None:
    from evals.collect.command import run_collect

    try:
        run_collect(
            args.roots,
            _console(),
            out=args.out,
            json=args.json,
            csv=args.csv,
            stale=args.stale,
            watch=args.watch,
        )
    except KeyboardInterrupt:
        if args.watch is None:
            print("interrupted; files that are there are of the time before", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None


def _claims(args: argparse.Namespace) -> None:
    from evals.claims.command import run_claims, summary

    for line in summary(run_claims(args.roots, args.out)):
        print(line)
    print(f"written: {args.out}, {args.out.with_suffix('')}/claims.json and its figures")


def _rank(args: argparse.Namespace) -> None:
    from evals.outputs import check_place
    from evals.weights import heat_map
    from evals.weights.command import compare_folders, parse_modules, result_path, show
    from evals.weights.rank import Settings

    if (args.run is None) != (args.step is None):
        raise EvalError("--run and --step belong together")
    if args.run is not None and args.out is not None:
        raise EvalError("--out and --run both say where the result goes; give one of them")
    if args.plot is not None:
        heat_map.check_format(args.plot)
        check_place(args.plot, "name another file with --plot")
    out = args.out if args.run is None else result_path(args.run, args.step)
    try:
        document = compare_folders(
            args.before,
            args.after,
            settings=Settings(share=args.share, modules=parse_modules(args.modules), only_change=args.only_change),
            base=args.base,
            device=args.device,
            out=out,
            step=args.step,
        )
    except KeyboardInterrupt:
        where = "start the same command to go on from there" if out else "nothing is kept without --out or --run"
        print(f"interrupted; {where}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    show(document, _console())
    if args.plot is not None:
        heat_map.save(document, args.plot)
    for path in (out, args.plot):
        if path is not None:
            print(f"written: {path}")


def _seconds(text: str) -> float:
    """A time such as 90s, 30min or 2h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write a number and s, min or h, such as 30min")
    return float(match[1]) * {"": 1, "s": 1, "min": 60, "h": 3600}[match[2]]


def _console() -> Console:
    from rich.console import Console

    # Written to a file or a pipe, a table must not be folded to an 80-column terminal that is not there.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evals", description="Score models; report what runs learned and forgot."
    )
    commands = parser.add_subparsers(required=True, metavar="run|report|collect|claims|rank")
    for add in (_add_run, _add_report, _add_collect, _add_claims, _add_rank):
        add(commands)
    return parser


def _add_run(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        help="score a model on suites of benchmarks and on held-out text",
        description="Score a model on suites of lm-evaluation-harness and on held-out text, on one device or, started with "
        "torchrun, on one device of each process. Answers are kept beside the result, so an interrupted command can be "
        "started again.",
    )
    run.add_argument(
        "model", type=Path, metavar="MODEL", help="folder of a Hugging Face model, a PEFT adapter or a run"
    )
    run.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="[DOMAIN=]NAME[:SHOTS][@EXAMPLES]",
        help="forgetting, learning-code, learning-code-256, learning-math, commonsense, a task of lm-evaluation-harness "
        "or a task file; repeat for more. forgetting@200 scores the first 200 examples of each task",
    )
    run.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME=KIND:DOMAIN:PATH",
        help="held-out text: KIND bits_per_byte, continuation_choice or response_bits_per_byte, DOMAIN new or old, PATH a "
        "JSONL file; repeat",
    )
    run.add_argument("--data", type=Path, metavar="DIR", help="folder of the suites' data sets (default: the hub)")
    run.add_argument("--samples", type=int, help="answers per prompt of tasks that sample (default: the suite's)")
    run.add_argument("--temperature", type=float, help="of these samples (default: the suite's)")
    run.add_argument("--seed", type=int, default=0, help="of these samples (default: %(default)s)")
    run.add_argument("--max-new-tokens", type=int, help="longest answer, whatever the tasks say (default: as they say)")
    run.add_argument("--base", type=Path, metavar="DIR", help="an adapter's base (default: what its config names)")
    run.add_argument(
        "--tokenizer", type=Path, help="tokenizer.model, tokenizer.json or their folder (default: the model's)"
    )
    run.add_argument(
        "--seq-len",
        type=int,
        help="tokens in the longest model input (default: the model's; at most 1024 for held-out text)",
    )
    run.add_argument(
        "--batch-tokens", type=int, help="tokens per forward, padding included (default: 8192 on a GPU, 1024 on a CPU)"
    )
    run.add_argument("--max-examples", type=int, default=200, help="examples per --task (default: %(default)s)")
    run.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ... (default: each process its own GPU where there is one)"
    )
    run.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="(default: %(default)s)"
    )
    run.add_argument("--out", type=Path, metavar="FILE", help="write the result here as JSON, like evals/<step>.json")
    run.add_argument(
        "--run", type=Path, metavar="RUN", help="write it to RUN/evals/STEP.<suites>.json, if not there yet"
    )
    run.add_argument("--step", type=int, help="optimizer steps that the model has had in that run, with --run")
    run.add_argument(
        "--no-sandbox-i-know",
        action="store_true",
        help="run programs that the model writes with your rights where the machine cannot isolate them",
    )
    run.set_defaults(command=_run)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", help="write the learning/forgetting page of the runs under a folder")
    report.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the runs")
    report.add_argument("--out", type=Path, help="folder to write to (default: ROOT/report)")
    report.set_defaults(command=_report)


def _add_collect(commands: Commands) -> None:
    collect = commands.add_parser(
        "collect",
        help="a table and a page of every run under some folders",
        description="Read what every run below some folders recorded (settings, metrics, scores), without a GPU and while they train, "
        "and write one page, a table and a JSON document of what each learned and forgot. Prints one line per method.",
    )
    collect.add_argument("roots", type=Path, nargs="+", metavar="ROOT", help="folder that holds runs")
    collect.add_argument(
        "--out",
        type=Path,
        help="folder for index.html, table.csv, table.parquet and collected.json (default: ROOT/collected)",
    )
    collect.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=30.0,
        metavar="SECONDS",
        help="look again every so many seconds (default: 30), reading only what changed",
    )
    collect.add_argument(
        "--stale",
        type=_seconds,
        default="30min",
        metavar="TIME",
        help="a run that says it is running but wrote nothing for so long, such as 90s, 30min or 2h, is called stale "
        "(default: %(default)s)",
    )
    collect.add_argument("--json", type=Path, help="also write collected.json here")
    collect.add_argument("--csv", type=Path, help="also write table.csv here")
    collect.set_defaults(command=_collect)


def _add_claims(commands: Commands) -> None:
    claims = commands.add_parser(
        "claims",
        help="what the papers claim about these methods, measured on the runs of a sweep",
        description="Measure the claims of the papers on every run below some folders: which run is which method is taken from "
        "its configuration. Writes a Markdown document, and beside it a folder with its figures and claims.json. Notes in "
        "the document stay when it is written again.",
    )
    claims.add_argument("roots", type=Path, nargs="+", metavar="ROOT", help="folder that holds runs")
    claims.add_argument("--out", type=Path, required=True, metavar="FILE", help="the document, such as docs/study.md")
    claims.set_defaults(command=_claims)


def _add_rank(commands: Commands) -> None:
    rank = commands.add_parser("rank", help="the rank of the weight change between two states of a model, by SVD")
    rank.add_argument(
        "before", type=Path, metavar="BEFORE", help="folder of a model, an adapter, or a run with an export"
    )
    rank.add_argument("after", type=Path, metavar="AFTER", help="likewise, of the same model after training")
    rank.add_argument("--base", type=Path, metavar="DIR", help="of adapters (default: what adapter_config.json names)")
    rank.add_argument("--share", type=float, default=0.9, help="of the squared spectrum (default: %(default)s)")
    rank.add_argument(
        "--modules", default="", metavar="PATTERN,...", help="modules or weights, such as *_proj (default: all)"
    )
    rank.add_argument("--only-change", action="store_true", help="leave out W before and W after, most of the time")
    rank.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    rank.add_argument("--out", type=Path, metavar="FILE", help="write the result here as JSON; a second start goes on")
    rank.add_argument("--run", type=Path, metavar="RUN", help="write it to RUN/weights/rank-STEP.json instead")
    rank.add_argument("--step", type=int, help="of the run, with --run")
    rank.add_argument("--plot", type=Path, metavar="FILE", help="draw a heat map: .svg, .png or .pdf")
    rank.set_defaults(command=_rank)


if __name__ == "__main__":
    leave(main())
