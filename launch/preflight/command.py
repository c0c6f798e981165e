"""`python -m launch preflight RECIPE`: started like training, by any launcher, on every rank."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from launch.preflight import configuration
from launch.preflight.examination import Examination
from launch.preflight.exchange import Exchange, Silence
from launch.preflight.report import Report
from launch.preflight.roster import own_node
from training.files import write_json
from training.recipe import ConfigError
from training.world import WorldError, detect_world, limit_threads

HEALTHY, FAILS, WRONG_CONFIGURATION = 0, 1, 2
"""Exit codes."""

PATIENCE = 3
"""Times the limit that a rank tries to reach rank 0: where that one starts late, those who came in time must still be there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("recipe", type=Path, help="TOML file of the run")
    parser.add_argument("--ds_config", type=Path, help="DeepSpeed JSON of the run")
    parser.add_argument("--failing", type=Path, help="file for the names of failing nodes, one per line")
    parser.add_argument("--report", type=Path, help="file for the report as JSON")
    parser.add_argument(
        "--limit",
        type=float,
        default=60,
        help="seconds that rank 0 waits for another (default 60); to reach rank 0 the others take three times as long",
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # from deepspeed's launcher, which sets variables, too


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """This rank's part of all checks; the exit code, which is the same on all ranks that reach rank 0."""
    began = time.monotonic()
    try:
        world = detect_world(os.environ)
    except WorldError as error:
        print(f"\npreflight: {error}\n", file=sys.stderr)
        return WRONG_CONFIGURATION
    if not options.limit > 0:
        if world.rank == 0:
            print(f"--limit {options.limit:g}: must be greater than 0", file=sys.stderr)
        return WRONG_CONFIGURATION
    limit_threads(world, os.environ)
    own = configuration.read(options.recipe, options.ds_config, overrides, world.size)
    # torch's store prints a line for every attempt to connect and a stack for every wait in vain; what matters of it is raised.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    import training.ranks.fabric as fabric

    who = f"{own_node(os.environ)}: rank {world.rank}"
    try:
        store = fabric.open_store(world, PATIENCE * options.limit)
    except fabric.Unreachable as error:
        print(f"preflight: {who}: {error}", file=sys.stderr, flush=True)
        return FAILS
    exchange = Exchange(store, world.rank, world.size, limit=options.limit)
    try:
        report = Examination(world, own, exchange, fabric, store, began).run()
        code = int(exchange.told("code", publish(report, options) if report is not None else None))
        exchange.close()
    except ConfigError as error:
        if world.rank == 0:
            print(f"\n{error}\n", file=sys.stderr, flush=True)
        exchange.close()
        return WRONG_CONFIGURATION
    except Silence as error:
        print(f"preflight: {who}: {error}", file=sys.stderr, flush=True)
        return FAILS
    fabric.leave(code)
    return code


def publish(report: Report, options: argparse.Namespace) -> int:
    """Print the report and write the files that were asked for; the exit code."""
    print(report.text(), flush=True)
    code = report.code
    for option, path in (("--failing", options.failing), ("--report", options.report)):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if option == "--report":
                write_json(path, report.json())
            else:
                path.write_text("".join(f"{node}\n" for node in report.failing))
        except OSError as error:
            print(
                f"preflight: {option} {path} can't be written: {error.strerror or error}", file=sys.stderr, flush=True
            )
            code = code or FAILS
    return code
