"""The command line: `python -m evals run | report | collect`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evals.errors import EvalError

if TYPE_CHECKING:
    from rich.console import Console

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 = done, 2 = the input is wrong."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.command(parsed)
    except EvalError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _run(args: argparse.Namespace) -> None:
    from evals.score_folder import parse_task, score_folder

    tasks = dict(parse_task(text, args.max_examples) for text in args.task)
    score_folder(
        args.model,
        tasks,
        tokenizer=args.tokenizer,
        seq_len=args.seq_len,
        batch_rows=args.batch_rows,
        device=args.device,
        dtype=args.dtype,
        out=args.out,
    )


def _report(args: argparse.Namespace) -> None:
    from evals.report.write import summary_table, write_report

    report, page = write_report(args.root, args.out)
    _console().print(summary_table(report))
    for name, reason in report["left_out"].items():
        print(f"left out: {name}: {reason}")
    print(f"{report['headline']}\nreport: {page}")


def _collect(args: argparse.Namespace) -> None:
    from evals.collect import table as collect

    rows = collect.collect(args.root)
    if args.json:
        collect.write_collected_json(args.json, rows)
    if args.csv:
        collect.write_collected_csv(args.csv, rows)
    _console().print(collect.table(rows))


def _console() -> Console:
    from rich.console import Console

    # Written to a file or a pipe, a table must not be folded to an 80-column terminal that is not there.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evals", description="Score models; report what runs learned and forgot."
    )
    commands = parser.add_subparsers(required=True, metavar="run|report|collect")

    run = commands.add_parser("run", help="score a Hugging Face model folder on one device")
    run.add_argument("model", type=Path, metavar="MODEL_DIR", help="folder with config.json and weights")
    run.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="NAME=KIND:DOMAIN:PATH",
        help="KIND bits_per_byte or continuation_choice, DOMAIN new or old, PATH a JSONL file; repeat for more",
    )
    run.add_argument(
        "--tokenizer", type=Path, help="tokenizer.model, tokenizer.json or their folder (default: MODEL_DIR)"
    )
    run.add_argument(
        "--seq-len", type=int, default=1024, help="tokens in the longest model input (default: %(default)s)"
    )
    run.add_argument("--batch-rows", type=int, default=8, help="rows per forward (default: %(default)s)")
    run.add_argument("--max-examples", type=int, default=200, help="examples per task (default: %(default)s)")
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    run.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="(default: %(default)s)"
    )
    run.add_argument("--out", type=Path, help="write the result here as JSON, like a run's evals/<step>.json")
    run.set_defaults(command=_run)

    report = commands.add_parser("report", help="write the learning/forgetting page of the runs under a folder")
    report.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the runs")
    report.add_argument("--out", type=Path, help="folder to write to (default: ROOT/report)")
    report.set_defaults(command=_report)

    collect = commands.add_parser("collect", help="a table of every run under a folder")
    collect.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the runs")
    collect.add_argument("--json", type=Path, help="also write the table here as JSON")
    collect.add_argument("--csv", type=Path, help="also write the table here as CSV")
    collect.set_defaults(command=_collect)
    return parser


if __name__ == "__main__":
    sys.exit(main())
