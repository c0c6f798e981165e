"""What the contenders of the training benchmark share: the rows, the clock, the memory they hold, the JSON they print.

Both sides train on the same rows, made anew in every process from a seed: packed documents of log-normal lengths, of which
the first part of every document may be masked as a prompt is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

IGNORE = -100
"""Label of a position that is no target."""

LORA = {"rank": 16, "alpha": 32}
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEARNING_RATE = 1e-4


def arguments(description: str) -> argparse.Namespace:
    """The command line of a contender."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base", type=Path, required=True, help="folder of the model to train")
    parser.add_argument("--method", choices=("full", "lora"), required=True)
    parser.add_argument("--placement", choices=("zero3", "replicated"), default="zero3")
    parser.add_argument("--precision", choices=("bf16", "fp32"), required=True)
    parser.add_argument("--masked", type=float, default=0.0, help="part of the tokens that is no target")
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--document", type=int, required=True, help="median length of a document")
    parser.add_argument("--micro", type=int, required=True, help="rows per forward pass on a rank")
    parser.add_argument("--accumulation", type=int, required=True, help="forward passes per step")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, required=True, help="steps that are measured")
    parser.add_argument("--ds-config", type=Path, required=True, help="DeepSpeed JSON: stage and buckets")
    parser.add_argument("--count", action="store_true", help="count bytes on the wire")
    parser.add_argument("--profile", type=Path, help="file for a table of where the time of the last step goes")
    return parser.parse_args()


class Rows(NamedTuple):
    """Packed rows, all int64 of shape (rows, seq_len)."""

    input_ids: np.ndarray
    targets: np.ndarray
    """targets[:, i] is to be predicted at position i; IGNORE where there is none."""
    position_ids: np.ndarray
    """Restart at 0 at every document."""

    def labels(self) -> np.ndarray:
        """The targets as transformers wants them, which shifts labels itself."""
        labels = np.full_like(self.targets, IGNORE)
        labels[:, 1:] = self.targets[:, :-1]
        return labels


def make_rows(count: int, *, seq_len: int, vocab_size: int, document: int, masked: float) -> Rows:
    """Rows filled with documents of random tokens and log-normal lengths around `document`.

    In each of them the first `masked` of the positions have no target; neither has the last one.
    """
    draw = np.random.default_rng(0)
    input_ids = np.empty((count, seq_len), dtype=np.int64)
    targets = np.full((count, seq_len), IGNORE)
    position_ids = np.zeros((count, seq_len), dtype=np.int64)
    for row in range(count):
        input_ids[row] = draw.integers(3, vocab_size, seq_len)
        start = 0
        while start < seq_len:
            length = min(max(8, int(document * draw.lognormal(sigma=0.7))), seq_len - start)
            prompt = start + round(masked * (length - 1))
            targets[row, prompt : start + length - 1] = input_ids[row, prompt + 1 : start + length]
            position_ids[row, start : start + length] = np.arange(length)
            start += length
    return Rows(input_ids, targets, position_ids)


class Clock:
    """Times whole steps of all ranks, from barrier to barrier, and the memory they take, once warmed up."""

    def __init__(self, warm_up: int) -> None:
        self._base = _resident("VmRSS")
        self._left = warm_up
        self._seconds: list[float] = []
        self._cpu_seconds: list[float] = []
        self._start = 0.0
        self._cpu_start = 0.0

    def step_ended(self) -> None:
        """Wait for the other ranks, and start the next step."""
        dist.barrier()
        if self._left > 0:
            self._left -= 1
            # Writing 5 makes the present size the highest: the peak is that of the steps that are measured.
            Path("/proc/self/clear_refs").write_text("5")
        else:
            self._seconds.append(time.perf_counter() - self._start)
            self._cpu_seconds.append(time.process_time() - self._cpu_start)
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def report(self, **more: Any) -> None:
        """Print the result (a collective): memory beyond what the process had with its libraries only, of the rank that takes most."""
        peak = torch.tensor([float(_resident("VmHWM") - self._base), sum(self._cpu_seconds)], dtype=torch.float64)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        if dist.get_rank() == 0:
            result = {
                "seconds": self._seconds,
                "median_seconds": statistics.median(self._seconds),
                "cpu_seconds": peak[1].item() / len(self._seconds),
                "peak_bytes": int(peak[0]),
                **more,
            }
            print(json.dumps(result), flush=True)


def _resident(kind: str) -> int:
    """Bytes of memory this process has (VmRSS), or has had at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {kind}")


class Counted:
    """Bytes that this rank puts on the wire in the last step, if they are asked for; `training/watch/traffic.py` counts both sides'."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._left = asked.warm_up + asked.steps - 1
        self._traffic: Any = None
        if asked.count:
            sys.path.append(str(Path(__file__).resolve().parents[2]))
            from training.watch.traffic import Traffic

            self._traffic = Traffic()

    def step_ended(self) -> None:
        """Take note of a step."""
        self._left -= 1
        if self._traffic is not None and self._left == 0:
            self._traffic.start()

    def result(self) -> dict[str, float] | None:
        """Bytes by kind of collective."""
        return None if self._traffic is None else self._traffic.bytes_by_kind()


@contextlib.contextmanager
def profiler(asked: argparse.Namespace) -> Iterator[None]:
    """Write where the time of what is inside goes, on rank 0, if that is asked for."""
    if asked.profile is None or dist.get_rank() != 0:
        yield
        return
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        yield
    asked.profile.write_text(
        profiled.key_averages(group_by_input_shape=True).table(
            sort_by="self_cpu_time_total", row_limit=60, max_shapes_column_width=120
        )
    )


def leave() -> None:
    """End at once, without the threads of process groups and loaders."""
    dist.barrier()
    os._exit(0)
