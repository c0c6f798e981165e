"""Directories of runs and sweeps, as `launch status`, `evals collect`, `evals report` and a new start of training read them."""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import os
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from evals.claims.command import run_claims
from evals.collect.command import run_collect
from evals.errors import EvalError
from evals.harness.kept import Kept
from evals.report.page import render
from evals.report.summary import build_report
from evals.results import write_json
from launch.job import command as job
from launch.status.found import find
from launch.status.state import states
from launch.status.table import as_json, lines, sweep_totals, table, totals
from launch.sweep.cells import Cell
from launch.sweep.states import state_of
from tests.fuzz.folders import read
from tests.fuzz.target import Target
from tests.fuzz.targets.configurations import ROOT
from tests.unit.evals.claims.synthetic import Method, make_study
from tests.unit.evals.conftest import LOSSES, results
from tests.unit.training.minimal import write_recipe
from training.config import to_dict
from training.errors import CheckpointError
from training.origin import find_origin
from training.recipe import ConfigError, load_config
from training.record.run_record import different_settings, directory_problems

NOW = 1_800_000_000.0
EVENTS = [
    {"job": "12_3", "event": "submitted", "at": "2026-05-04T03:02:01+00:00"},
    {"job": "12_3", "event": "started", "restart": 1, "nodes": ["n1", "n2"], "step": 5, "at": "2026-05-04T03:03:01+00:00"},
    {"job": "12_3", "event": "ended", "code": 1, "message": "it failed", "at": "2026-05-04T03:04:01+00:00"},
]  # fmt: skip


def _few(tasks: dict[str, Any]) -> dict[str, Any]:
    """Results of four examples each: the fewer, the more of the changes are elsewhere."""
    return {name: task | {"examples": task["examples"][:4]} for name, task in tasks.items()}


def _run(kind: str) -> dict[str, Any]:
    """The files of a run by name, as documents."""
    config = to_dict(load_config(ROOT / "recipes/demo.toml", ["--adapter.kind", kind], needs_files=False))
    record = {
        "schema": 1, "status": "running", "config": config, "world": {"size": 2}, "versions": {"torch": "2.13.0"},
        "parameters": {"total": 10**6, "trainable": 10**4}, "step": 100, "steps": 160, "tokens_seen": 409_600, "seconds": 61.5,
        "started": "2026-05-04T03:03:01+00:00", "starts": [{"at": "2026-05-04T03:03:01+00:00"}], "eval_seconds": 12.5,
        "last_checkpoint": 80, "base_fingerprint": "sha256:base", "epoch": {"rows": 100, "exact": True}, "skipped_steps": 1,
        "origins": [{"path": "elsewhere/checkpoints/5", "step": 5}], "job": {"job": "12_3", "event": "ended", "message": "x"},
    }  # fmt: skip
    metrics = [
        {"step": step, "loss": 3.0 - step / 50, "tokens_seen": 4096 * step, "tokens_per_second": 1e3, "step_seconds": 2.0,
         "stall_seconds": 0.1}
        for step in range(20, 101, 20)
    ]  # fmt: skip
    scored = {"schema": 1, "seconds": 3.5}
    before = {"step": 0, "tasks": _few(results(0, 0, 0, 0, seed=1))}
    after = {"step": 100, "tasks": _few(results(*LOSSES[kind], seed=2))}
    rank = {
        "schema": 1, "share": 0.9, "before": "base", "after": "run", "step": 100, "modules": ["q_proj"], "layers": ["0", "1"],
        "rank": [[3, 4]], "full_rank": [[8, 8]], "max_rank": 8, "relative_change": [[0.1, 0.2]],
    }  # fmt: skip
    return {
        "run.json": record, "metrics.jsonl": metrics, "anomalies.jsonl": [{"step": 3, "kind": "spike"}],
        "slurm/jobs.jsonl": EVENTS, "evals/0.json": scored | before, "evals/100.json": scored | after,
        "evals/100.more.json": scored | {"step": 100, "tasks": {"more": after["tasks"]["code"]}}, "weights/rank-100.json": rank,
        "evals/kept/100.jsonl": [{"schema": 1, "model": "x"}, {"key": "a", "answer": [-1.5, True]}, {"key": "b", "answer": "x"}],
    }  # fmt: skip


@functools.cache
def _study() -> dict[str, bytes]:
    """A sweep of two runs, one of which has begun with the other's."""
    cells = [
        {"index": i, "name": f"r{i}", "run": f"r{i}", "values": {"optim.lr": 1e-4 * i, "method": "m"}} for i in range(3)
    ]
    documents = {
        "sweep.json": {"schema": 1, "name": "s", "file": "s.toml", "axes": ["method", "optim.lr"], "cells": cells}
    }
    for number, kind in enumerate(("none", "lora")):
        documents |= {f"r{number}/{name}": content for name, content in _run(kind).items()}
    return {
        name: b"".join(json.dumps(line).encode() + b"\n" for line in content)
        if isinstance(content, list)
        else json.dumps(content).encode()
        for name, content in documents.items()
    }


def _status(folder: Path) -> None:
    """Whatever the files hold, there is a table, plain lines, and JSON that is JSON."""
    found = find([folder], threads=1)
    shown = states(found.runs, {}, NOW)
    by_id = {state.id: state for state in shown}
    json.dumps(as_json(shown, found.sweeps), allow_nan=False)
    said = [*lines(shown), *(sweep_totals(sweep, by_id) for sweep in found.sweeps), totals(shown)]
    said += [f"{each.path}: {each.reason}" for each in found.skipped]
    with (folder / "shown").open("w", encoding="utf-8") as file:
        console = Console(file=file, width=120)
        console.print(table(shown, 120))
        for line in said:
            console.print(line, markup=False)
    for name in ("r0", "r1"):
        state_of(Cell(index=0, name=name, recipe=folder, run_dir=folder / name, values={}, settings={}), {})


def _collect(folder: Path) -> None:
    """Every form of the document is written, twice: the second time from the cache."""
    out = folder / "collected"
    for _ in range(2):
        with (folder / "shown").open("w", encoding="utf-8") as file:
            run_collect([folder], Console(file=file, width=120), out=out)
    # Nothing that JSON has no word for.
    json.loads((out / "collected.json").read_text(encoding="utf-8"), parse_constant=_refuse)
    for name in ("r0", "r1"):
        path = folder / name / "evals/kept/100.jsonl"
        if path.is_file():
            Kept(path, {"model": "x"}).add({"c": [0.5]})
            assert Kept(path, {"model": "x"})["c"] == [0.5]


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} in JSON")


def _report(folder: Path) -> None:
    """The report, without its plots."""
    report = build_report(folder)
    write_json(folder / "report.json", report)
    (folder / "index.html").write_text(render(report), encoding="utf-8")


def _begin(folder: Path) -> None:
    """What a new start of training asks of the run's directory."""
    run = folder / "r0"
    config = load_config(ROOT / "recipes/demo.toml", ["--run.dir", str(run)], needs_files=False)
    directory_problems(config)
    different_settings(run, config)
    find_origin(config)


@functools.cache
def _recipe() -> Path:
    """A recipe whose files are there, in a folder that stays until the process ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return write_recipe(Path(folder))


def _job(folder: Path) -> None:
    """A job of the run begins, or can't, and ends in several ways; the end is always said."""
    run = folder / "r0"
    begin = ["begin", str(_recipe()), "--ranks", "2", "--run.dir", str(run)]
    ends = [
        ["--code", "1"],
        ["--code", "85", "--time-is-up"],
        ["--code", "1", "--preflight", "--failing", str(folder / "failing")],
    ]
    variables = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": "1"}
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    with mock.patch.dict(os.environ, variables), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for words, codes in ((begin, (0, 1, 2, 10)), *((["end", str(run), *end], (0, 1, 75, 76)) for end in ends)):
            assert job.run(*parser.parse_known_args(words)) in codes
        assert job.run(*parser.parse_known_args(["base", str(run)])) in (0, 2)


def _jobs() -> dict[str, bytes]:
    """A run that has failed once, and what preflight has said."""
    found = {name: content for name, content in _begun().items() if name.startswith("r0/")}
    record = json.loads(found["r0/run.json"]) | {
        "status": "failed",
        "error": "rank 1: no memory",
        "stopped_by": "SIGUSR1",
    }
    return {
        "r0/run.json": json.dumps(record).encode(),
        "r0/slurm/jobs.jsonl": found["r0/slurm/jobs.jsonl"],
        "failing": b"n1\n",
    }


def _small_study() -> dict[str, bytes]:
    """Two methods at two rates and seeds, and a document with a note."""
    methods = {"full": Method(k=50), "lora_r4": Method(kind="lora", rank=4, learned=0.4, forgotten=0.1)}
    with tempfile.TemporaryDirectory() as folder:
        root = make_study(
            Path(folder) / "runs", methods, rates=(3e-4, 1e-3), seeds=(1, 2), budgets=(16, 32), documents=3
        )
        with mock.patch("evals.claims.command.save"):
            run_claims([root], Path(folder) / "study.md")
        (Path(folder) / "study/claims.json").unlink()
        return read(Path(folder))


def _claims(folder: Path) -> None:
    """The document is written, without saving its figures, which takes most of the time."""
    with mock.patch("evals.claims.command.save"), redirect_stderr(StringIO()):
        run_claims([folder / "runs"], folder / "study.md")
    json.loads((folder / "study/claims.json").read_text(encoding="utf-8"), parse_constant=_refuse)


def _begun() -> dict[str, bytes]:
    """The study before it saved anything."""
    return {name: content.replace(b'"last_checkpoint": 80, ', b"") for name, content in _study().items()}


TARGETS = [
    Target(name="launch status", make=_study, read=_status, errors=(EvalError,), share=2),
    Target(name="evals collect", make=_study, read=_collect, errors=(EvalError,), share=0.3),
    Target(name="evals report", make=_study, read=_report, errors=(EvalError,), share=0.05),
    Target(name="start of training", make=_begun, read=_begin, errors=(ConfigError, CheckpointError)),
    Target(name="launch job", make=_jobs, read=_job, share=0.5),
    Target(name="evals claims", make=_small_study, read=_claims, errors=(EvalError,), share=0.05),
]
