"""What ranks do in tests of the data; called by name through tests.ranks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

CPU_JSON = Path(__file__).resolve().parents[2] / "ds_configs" / "zero3_cpu.json"


def train(recipe: str, settings: list[str], dies_at: int | None = None) -> dict[str, Any]:
    """Run training/main.py's program; with `dies_at`, this rank kills itself before it takes that step."""
    from training import loop
    from training.main import main

    if dies_at is not None:
        take_batch = loop.take_batch
        steps = iter(range(dies_at))

        def take_or_die(*args: Any, **more: Any) -> Any:
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return take_batch(*args, **more)

        loop.take_batch = take_or_die
    return {"code": main(["--ds_config", str(CPU_JSON), "--recipe", recipe, *settings])}


def train_with_a_dead_worker(recipe: str, settings: list[str], rank: int, at: int) -> dict[str, Any]:
    """Run training/main.py's program, in which the worker of one rank is killed before a step."""
    from data_pipeline.stream.workers import PrefetchedStream
    from training import loop

    take_batch, pids, steps = loop.take_batch, [], iter(range(at))
    start = PrefetchedStream.__iter__

    def remember(stream: PrefetchedStream) -> PrefetchedStream:
        start(stream)
        pids.extend(stream.worker_pids)
        return stream

    def kill_then_take(*args: Any, **more: Any) -> Any:
        if next(steps, None) is None and int(os.environ["RANK"]) == rank:
            # Again at the steps that had been made ahead, when it is gone.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
        return take_batch(*args, **more)

    PrefetchedStream.__iter__ = remember  # type: ignore[method-assign]
    loop.take_batch = kill_then_take
    return train(recipe, settings) | {"pids": pids, "alive": [pid for pid in pids if Path(f"/proc/{pid}").exists()]}


def write_recipe(tiny: Path, folder: Path) -> Path:
    """A recipe with text and instructions, few enough for several epochs, beside the files of the tiny recipe."""
    documents = [json.loads(line) for line in (tiny.parent / "train.jsonl").read_text().splitlines()]
    with (folder / "pairs.jsonl").open("w") as file:
        for number, document in enumerate(documents[:24]):
            pair = {"prompt": f"Write part {number}. ", "response": document["text"][: 20 + 3 * number]}
            file.write(json.dumps(pair) + "\n")
    with (folder / "text.jsonl").open("w") as file:
        for document in documents[:15]:
            file.write(json.dumps({"text": document["text"][:300]}) + "\n")
    text = tiny.read_text().partition("[eval.tasks")[0]
    for name in ("base", "tokenizer.model"):
        text = text.replace(f'"{name}"', f'"{tiny.parent / name}"')
    text = text.replace('path = "train.jsonl"', 'path = "text.jsonl"')
    more = '[data.sources.pairs]\npath = "pairs.jsonl"\nkind = "prompt"\nweight = 0.5\n'
    recipe = folder / "mixed.toml"
    recipe.write_text(text + more)
    return recipe


def open_together(seconds: float, patience: float) -> dict[str, Any]:
    """Rank 0 works for longer than the process group waits, then rank 1 has a problem; when each came in and out."""
    import time
    from datetime import timedelta

    import torch.distributed as dist

    from data_pipeline.errors import PipelineError
    from training.ranks.distributed import raise_on_all_ranks, rank_0_first
    from training.world import detect_world

    world = detect_world(os.environ)
    dist.init_process_group("gloo", timeout=timedelta(seconds=patience))
    with rank_0_first(world, heartbeat_seconds=patience / 4):
        entered = time.time()
        if world.rank == 0:
            time.sleep(seconds)
        left = time.time()
    raise_on_all_ranks(None, PipelineError, world)
    try:
        raise_on_all_ranks(OSError("no such disk") if world.rank == 1 else None, PipelineError, world)
        problem = ""
    except PipelineError as error:
        problem = str(error)
    dist.destroy_process_group()
    return {"entered": entered, "left": left, "problem": problem}
