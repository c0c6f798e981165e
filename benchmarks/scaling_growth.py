"""How cost grows, each thing measured at three sizes: with tokens, ranks, documents, run directories, bytes of a checkpoint, lines
of metrics, and cells of a sweep.

What is measured doesn't depend on how busy the machine is, as far as that is possible: processor seconds, peak memory, bytes and
counts; seconds of a clock only where waiting is the point (a save's stall). Growth is the slope of a straight line through
(log size, log figure), by least squares: 1 is linear, 0 constant. "Last" is the slope between the two largest sizes, in
which what a process takes just to start weighs least.

    python benchmarks/scaling.py --measure
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import resource
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LLAMA = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_layers": 4,
    "num_heads": 6,
    "num_kv_heads": 6,
    "vocab_size": 2048,
}
STEPS = 2
"""Measured ones, of which the cheaper counts."""
SAVED_WIDTHS = (128, 384, 1024)
DOCUMENTS = (10_000, 100_000, 1_000_000)
RUN_DIRECTORIES = (10, 100, 1000)
LINES = (1_000, 10_000, 100_000)
RANKS = (1, 2, 4)
CONNECTIONS = (64, 256, 1024)
LISTENED_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """A figure at several sizes."""

    area: str
    size: str
    """What grows."""
    figure: str
    """What is measured, with its unit."""
    sizes: tuple[int, ...]
    values: tuple[float, ...]
    expected: float | None
    """The slope that it may have; None where there is no such number."""
    note: str = ""

    @property
    def slope(self) -> float | None:
        """Of all sizes together; None where a figure is 0."""
        return slope_of(self.sizes, self.values)

    @property
    def last(self) -> float | None:
        """Between the two largest sizes."""
        return slope_of(self.sizes[-2:], self.values[-2:])


def slope_of(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The slope of the line of least squares through (log size, log value); None where a value is not above 0."""
    if min(values) <= 0:
        return None
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - middle_x) ** 2 for a in x)


def measure(names: Sequence[str], folder: Path) -> Iterator[Growth]:
    """Some areas, one after another; files go to an empty folder on a disk, and are gone when an area is done."""
    for name in names:
        own = folder / name
        own.mkdir()
        yield from AREAS[name](own)
        shutil.rmtree(own)


def tokens(folder: Path) -> Iterator[Growth]:
    """A step of a tiny LLaMA: more rows one after another, more at once, longer ones."""
    plans: dict[str, tuple[str, list[dict[str, int]]]] = {
        "micro-batches": ("tokens of a step, in micro-batches of 256", [{"seq_len": 256, "rows": 1, "times": n} for n in (1, 4, 16)]),
        "rows": ("tokens of a micro-batch, in rows of 256", [{"seq_len": 256, "rows": n, "times": 1} for n in (1, 4, 16)]),
        "length": ("tokens of a row, 2,048 per step", [{"seq_len": n, "rows": 2048 // n, "times": 1} for n in (128, 512, 2048)]),
    }  # fmt: skip
    cases = [
        case | {"placement": "replicated", "is_weighed": True} for _, (_, wanted) in plans.items() for case in wanted
    ]
    (measured,) = on_ranks(1, cases, folder)
    found = iter(measured)
    for name, (size, wanted) in plans.items():
        three = [next(found) for _ in wanted]
        sizes = tuple(
            case["seq_len"] if name == "length" else case["seq_len"] * case["rows"] * case["times"] for case in wanted
        )
        flops = [each["flops"] for each in three]
        yield Growth(
            area="tokens", size=size, figure="step, processor seconds", sizes=sizes,
            values=tuple(each["cpu_seconds"] for each in three), expected=slope_of(sizes, flops), note="as its FLOPs",
        )  # fmt: skip
        yield Growth(
            area="tokens", size=size, figure="peak of a step beyond what is held, MiB", sizes=sizes,
            values=tuple((each["peak"] - each["held"]) / 2**20 for each in three),
            expected=0.0 if name == "micro-batches" else 1.0 if name == "rows" else None,
        )  # fmt: skip


def ranks(folder: Path) -> Iterator[Growth]:
    """Steps on 1, 2 and 4 ranks, what each sends, and how ranks meet; a rank's batch stays the same."""
    common = {"seq_len": 128, "rows": 1, "times": 1}
    cases = [
        common | {"placement": placement, "kind": kind}
        for placement in ("replicated", "zero3") for kind in ("none", "lora")
    ]  # fmt: skip
    by_ranks = {n: on_ranks(n, cases, folder) for n in RANKS}
    for number, case in enumerate(cases):
        per_rank = {n: by_ranks[n][0][number] for n in RANKS}
        label = f"{'full' if case['kind'] == 'none' else 'LoRA'}, {case['placement']}"
        wire, predicted = ([each[name] for each in per_rank.values()] for name in ("wire", "predicted_wire"))
        worst = max(abs(a / b - 1) for a, b in zip(predicted[1:], wire[1:], strict=True))
        yield Growth(
            area="ranks", size="ranks", figure=f"bytes that a rank sends per step: {label}", sizes=RANKS, values=tuple(wire),
            expected=None, note=f"as S (n - 1) / n; prediction off by {worst:.1e} at most",
        )  # fmt: skip
    for figure, key, expected, note in (
        ("bytes that a rank sends at a step's boundary", "boundary_bytes", None, "as 2 S (n - 1) / n"),
        ("collectives at a step's boundary", "boundary_calls", 0.0, ""),
        ("joining, processor seconds of rank 0", "join_seconds", 1.0, "a connection per rank"),
        ("sockets of rank 0", "sockets", 1.0, "a connection per rank, of the store and of gloo"),
    ):
        values = tuple(by_ranks[n][0][0][key] for n in RANKS)
        yield Growth(
            area="ranks", size="ranks", figure=figure, sizes=RANKS, values=values, expected=expected, note=note
        )
    bench = saves(folder)
    case = saved_case(256)
    saved = {n: (bench.run("ours", case, n, 0, keeps=True), manifest_bytes(bench.place)) for n in RANKS}
    yield Growth(
        area="ranks", size="ranks", figure="bytes of a checkpoint that a rank writes", sizes=RANKS,
        values=tuple(result["bytes"] / n for n, (result, _) in saved.items()), expected=-1.0,
    )  # fmt: skip
    yield Growth(
        area="ranks", size="ranks", figure="bytes of a checkpoint's manifest", sizes=RANKS,
        values=tuple(float(size) for _, size in saved.values()), expected=1.0, note="an entry per rank, and one per parameter",
    )  # fmt: skip


def lifelines(folder: Path) -> Iterator[Growth]:
    """Rank 0's end of the lifelines, with ranks that say where they are and do nothing else."""
    values = [in_a_process("serve", str(count), str(folder))["cpu_seconds"] for count in CONNECTIONS]
    yield Growth(
        area="lifelines", size="lifelines", figure="processor seconds of their server, per second", sizes=CONNECTIONS,
        values=tuple(values), expected=1.0, note="at most 200 messages per second, whatever the number of ranks",
    )  # fmt: skip


def documents(folder: Path) -> Iterator[Growth]:
    """Small documents in 8 files: indexing, opening as indexed, and from there to the first batch of packed rows."""
    from benchmarks.data_corpus import tokenizer_files

    tokenizer, _ = tokenizer_files(folder)
    measured: dict[str, list[dict[str, float]]] = {"index": [], "open": [], "first_batch": []}
    for count in DOCUMENTS:
        data = folder / str(count)
        write_documents(data, count)
        for task, found in measured.items():
            found.append(in_a_process(task, str(data), str(tokenizer)))
        shutil.rmtree(data)
    short = "these files are shorter than what is read at once; constant from 0.55 to 5.5 GB (index_scale.py)"
    for task, figure, key, scale, expected, note in (
        ("index", "indexing, processor seconds", "cpu_seconds", 1, 1.0, ""),
        ("index", "indexing, peak memory beyond imports, MiB", "memory", 2**20, 0.0, short),
        ("index", "index, bytes on disk", "index_bytes", 1, 1.0, ""),
        ("open", "opening, processor seconds", "cpu_seconds", 1, 1.0, ""),
        ("open", "opening, peak memory beyond imports, MiB", "memory", 2**20, 1.0, ""),
        ("first_batch", "first batch, processor seconds", "cpu_seconds", 1, 1.0, ""),
        ("first_batch", "bytes of the stream's state, 8 lanes", "state_bytes", 1, 0.0, ""),
    ):
        yield Growth(
            area="documents", size="documents", figure=figure, sizes=DOCUMENTS,
            values=tuple(each[key] / scale for each in measured[task]), expected=expected, note=note,
        )  # fmt: skip


def run_directories(folder: Path) -> Iterator[Growth]:
    """Made-up runs with three evaluations each, of 50 questions per task."""
    from benchmarks.synthetic_runs import make_runs

    looks: dict[str, list[Usage]] = {"collect": [], "collect, nothing new": [], "status": []}
    for count in RUN_DIRECTORIES:
        runs = folder / str(count)
        make_runs(runs, count, examples=50, points=3)
        out = folder / f"collected-{count}"
        for name in ("collect", "collect, nothing new"):
            looks[name].append(usage("evals", "collect", str(runs), "--out", str(out)))
        looks["status"].append(usage("launch", "status", str(runs)))
        shutil.rmtree(runs)
    yield from looked("runs", "run directories", RUN_DIRECTORIES, looks, {"processor": 1.0, "memory": 1.0})


def metrics(folder: Path) -> Iterator[Growth]:
    """One run whose metrics.jsonl is long."""
    from benchmarks.synthetic_runs import make_runs

    looks: dict[str, list[Usage]] = {"collect": [], "status": []}
    for count in LINES:
        runs = folder / str(count)
        (run,) = make_runs(runs, 1, examples=50, points=3)
        lengthen(run / "metrics.jsonl", count)
        looks["collect"].append(usage("evals", "collect", str(runs), "--out", str(folder / f"collected-{count}")))
        looks["status"].append(usage("launch", "status", str(runs)))
    # Both read some of the lines, however many there are.
    yield from looked("metrics", "lines of metrics.jsonl", LINES, looks, {"processor": 0.0, "memory": 0.0})


def sweeps(folder: Path) -> Iterator[Growth]:
    """`launch sweep --list` of cells that have not begun."""
    sizes, found = (10, 100, 1000), []
    for count in sizes:
        file = folder / f"{count}.toml"
        file.write_text(
            f'recipe = "{ROOT / "recipes" / "demo.toml"}"\nroot = "{folder / "cells"}"\n[grid]\n'
            f'"optim.lr" = {[round(1e-4 * (1 + k / 100), 6) for k in range(10)]}\n'
            f'"run.seed" = {list(range(count // 10))}\n'
        )
        found.append(usage("launch", "sweep", str(file), "--list"))
    yield from looked("sweeps", "cells", sizes, {"sweep --list": found}, {"processor": 1.0, "memory": 1.0})


def checkpoints(folder: Path) -> Iterator[Growth]:
    """Saves of wider and wider models, on one rank."""
    bench, sizes, stalls, manifests = saves(folder), [], [], []
    for width in SAVED_WIDTHS:
        result = bench.run("ours", saved_case(width), 1, 3, keeps=True)
        sizes.append(int(result["bytes"]))
        # A copy takes the same work every time; what is beyond the quickest is others' work on the machine.
        stalls.append(min(result["stall_seconds"]))
        manifests.append(float(manifest_bytes(bench.place)))
    for figure, values, expected, note in (
        ("stall of a save, seconds", stalls, 1.0, "a copy in memory, and what is constant"),
        ("bytes of the manifest", manifests, 0.0, "an entry per rank, and one per parameter"),
    ):
        yield Growth(
            area="checkpoints", size="bytes of a checkpoint", figure=figure, sizes=tuple(sizes), values=tuple(values),
            expected=expected, note=note,
        )  # fmt: skip


AREAS: dict[str, Callable[[Path], Iterator[Growth]]] = {
    "tokens": tokens, "ranks": ranks, "lifelines": lifelines, "documents": documents, "runs": run_directories,
    "metrics": metrics, "sweeps": sweeps, "checkpoints": checkpoints,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a process has used."""

    cpu_seconds: float
    peak_mib: float


def usage(module: str, *arguments: str) -> Usage:
    """Run `python -m MODULE` with arguments in the repository, and what it says of itself at its end.

    The system's own account of a process that has ended has the memory of the one that started it in it.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.NamedTemporaryFile("r") as report:
        done = subprocess.run(
            [sys.executable, "-c", "from benchmarks.scaling_growth import run_module; run_module()", report.name, module, *arguments],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{module} {' '.join(arguments)} ended with {done.returncode}")
        return Usage(**json.load(report))


def run_module() -> None:
    """Run a module as a program, and write to the file that the command line names first what it has used, helpers included."""
    report, *sys.argv = sys.argv[1:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        used = Usage(
            cpu_seconds=sum(each.ru_utime + each.ru_stime for each in both),
            peak_mib=max(status_bytes("VmHWM") / 2**20, both[1].ru_maxrss / 1024),
        )
        Path(report).write_text(json.dumps(dataclasses.asdict(used)))


def looked(
    area: str, size: str, sizes: tuple[int, ...], looks: dict[str, list[Usage]], expected: dict[str, float]
) -> Iterator[Growth]:
    """Processor seconds and memory of commands."""
    for name, used in looks.items():
        for figure, key, kind in (
            ("processor seconds", "cpu_seconds", "processor"), ("peak memory, MiB", "peak_mib", "memory")
        ):  # fmt: skip
            yield Growth(
                area=area, size=size, figure=f"{name}, {figure}", sizes=sizes,
                values=tuple(getattr(each, key) for each in used), expected=expected[kind],
            )  # fmt: skip


def on_ranks(count: int, cases: list[dict[str, Any]], folder: Path) -> list[list[dict[str, float]]]:
    """Take steps of every case; what each rank found."""
    from tests.ranks import run_ranks

    found: list[list[dict[str, float]]] = run_ranks(
        "benchmarks.scaling_growth:take_steps", count, timeout=1800, fresh=True, cases=cases, folder=str(folder)
    )
    return found


def take_steps(cases: list[dict[str, Any]], folder: str) -> list[dict[str, float]]:
    """On one rank: the figures of every case, and of joining the others and of a boundary, in each of them."""
    import torch

    from training.ranks.distributed import gather, init_distributed, sum_over_ranks
    from training.watch.traffic import Traffic
    from training.world import detect_world

    torch.set_num_threads(1)
    world = detect_world(os.environ)
    began = time.process_time()
    device = init_distributed(world)
    gather(None, world)
    joined = {"join_seconds": time.process_time() - began, "sockets": float(open_sockets())}
    traffic = Traffic()
    # A stop request and the three signals of a save.
    sum_over_ranks([0.0] * 4)
    joined |= {"boundary_bytes": traffic.bytes, "boundary_calls": float(traffic.calls)}
    return [joined | step_figures(case, Path(folder), world, device) for case in cases]


def step_figures(case: dict[str, Any], folder: Path, world: Any, device: Any) -> dict[str, float]:
    """Processor seconds, bytes sent, FLOPs and memory of a step."""
    import torch

    from benchmarks.memory_model import highest, live_bytes
    from training import placements
    from training.costs.communication import step_bytes
    from training.costs.fitting import setup_of
    from training.costs.flops import step_flops
    from training.ds_json import read_ds_config
    from training.engine import Engine
    from training.model.assembly import assemble
    from training.watch.traffic import Traffic

    config = configure(case, folder, world.size)
    ds_json, _ = read_ds_config(ROOT / "ds_configs" / "zero3_cpu.json")
    ds_config = placements.prepare(config, ds_json, world)
    batch, num_targets, pairs = random_batch(case, world.rank)
    engine = Engine(assemble(config, ds_config, world, device), config, ds_config, world)
    seconds = []
    for step in range(1 + STEPS):
        began, traffic = time.process_time(), Traffic()
        engine.step(batch, step, targets=world.size * num_targets)
        seconds.append(time.process_time() - began)
    sent, held, peak = traffic.bytes, live_bytes(), 0
    if case.get("is_weighed"):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            engine.step(batch, 1 + STEPS, targets=world.size * num_targets)
        peak = held + highest(profiler)
    engine.placement.close()
    shape = config.model.architecture.shape()
    setup = setup_of(
        config, shape, ranks=world.size, ranks_per_node=world.size, ds_config=ds_json, device="cpu"
    )  # fmt: skip
    flops = step_flops(shape, config.adapter.build(), tokens=num_targets, targets=num_targets, pairs=pairs)
    return {
        "cpu_seconds": min(seconds[1:]), "wire": float(sent), "predicted_wire": step_bytes(setup, case["times"]),
        "flops": flops, "held": float(held), "peak": float(peak),
    }  # fmt: skip


def configure(case: dict[str, Any], folder: Path, world_size: int) -> Any:
    """The case's configuration; nothing that it names is read."""
    from training.recipe import load_config

    rows = case["rows"]
    settings: dict[str, Any] = {f"model.architecture.{name}": value for name, value in LLAMA.items()}
    settings |= {
        "run.dir": folder, "data.seq_len": case["seq_len"], "data.tokenizer": folder / "none",
        "data.sources.none.path": folder / "none", "train.global_batch_rows": rows * case["times"] * world_size,
        "train.micro_batch_rows": rows, "train.placement": case["placement"], "train.precision": "fp32",
        "model.architecture.tie_embeddings": "false", "model.activation_checkpointing": "off",
    }  # fmt: skip
    overrides = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    config = load_config(None, overrides, world_size=world_size, needs_files=False)
    # Afterwards, as a recipe may put adapters on a pretrained base only.
    kind = case.get("kind", "none")
    return dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, kind=kind, dropout=0.0))


def random_batch(case: dict[str, Any], seed: int) -> tuple[Any, int, int]:
    """A step's rows of random tokens, of one document each; its number of targets, and of pairs of a query and a key."""
    import torch

    from training.batches import MicroBatch, StepBatch

    length, rows, vocab = case["seq_len"], case["rows"], LLAMA["vocab_size"]
    generator = torch.Generator().manual_seed(seed)
    size, pairs = rows * length, rows * length * (length + 1) // 2
    micro_batches = [
        MicroBatch(
            input_ids=torch.randint(vocab, (rows, length), generator=generator),
            position_ids=torch.arange(length).repeat(rows, 1), target_index=torch.arange(size),
            targets=torch.randint(vocab, (size,), generator=generator),
            cu_seqlens=torch.arange(0, size + 1, length, dtype=torch.int32), max_seqlen=length, pairs=pairs,
            first_lane=number * rows,
        )
        for number in range(case["times"])
    ]  # fmt: skip
    times = case["times"]
    return StepBatch(micro_batches=micro_batches, row_hash=0, documents=[]), times * size, times * pairs


def open_sockets() -> int:
    """Sockets of this process."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        # The listing's own is closed by now.
        with contextlib.suppress(OSError):
            count += os.readlink(link).startswith("socket:")
    return count


def saves(folder: Path) -> Any:
    """The checkpoint benchmark's contenders, in a folder."""
    from benchmarks.checkpoint import Bench

    # Otherwise DeepSpeed says that it finds no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return Bench(folder)


def saved_case(width: int) -> Any:
    """Full finetuning of a model of four layers."""
    from benchmarks.checkpoint import Case

    return Case(name="growth", hidden=width, layers=4, rank=0)


def manifest_bytes(place: Path) -> int:
    """Bytes of the newest checkpoint's manifest below a folder."""
    return max(place.rglob("MANIFEST.json"), key=lambda path: path.stat().st_mtime).stat().st_size


def write_documents(folder: Path, count: int) -> None:
    """Short documents as JSON lines, no two alike, in 8 files."""
    from benchmarks.data_corpus import numbered_texts

    texts = [text[:100] for text in numbered_texts(1000)]
    folder.mkdir()
    for number in range(8):
        with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as file:
            for document in range(number, count, 8):
                file.write(f'{{"text": "{document} {texts[document % 1000]}"}}\n')


def lengthen(file: Path, count: int) -> None:
    """Repeat the lines of a metrics.jsonl, their steps going on, until there are so many."""
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    with file.open("w") as out:
        for number in range(count):
            out.write(json.dumps(entries[number % len(entries)] | {"step": number + 1}) + "\n")


def in_a_process(task: str, *arguments: str) -> dict[str, float]:
    """Do a task in a process of its own; its processor seconds, its memory beyond its imports', and what it says besides."""
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.scaling_growth import do_task; do_task()", task, *arguments], check=True, stdout=subprocess.PIPE, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def status_bytes(name: str) -> int:
    """A line of this process's status, such as VmHWM, in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def opened(data: str, _: str) -> dict[str, float]:
    """Open a source, and index it if it has no index yet."""
    from data_pipeline.config import SourceConfig
    from data_pipeline.sources.source import open_source

    source = open_source("a", SourceConfig(path=data), cache_dir=Path(f"{data}-cache"), cache_bytes=0, workers=0)
    return {"index_bytes": float(sum(shard.index.size_on_disk for shard in source.shards))}


def first_batch(data: str, tokenizer: str) -> dict[str, float]:
    """From an index to a row of each of 8 lanes."""
    from data_pipeline.config import DataConfig, SourceConfig
    from data_pipeline.stream.workers import open_stream

    config = DataConfig(
        sources={"a": SourceConfig(path=data)}, tokenizer=Path(tokenizer), tokenizer_engine="reference", seq_len=512,
        cache_dir=Path(f"{data}-cache"), workers=0,
    )  # fmt: skip
    stream = open_stream(config, num_lanes=8, lanes=range(8), seed=0)
    rows = iter(stream)
    for _ in range(8):
        next(rows)
    state = json.dumps(stream.state_dict())
    stream.close()
    return {"state_bytes": float(len(state))}


def serve(count: str, folder: str) -> dict[str, float]:
    """Serve so many connections, each of which says where it is once per beat, for a few seconds."""
    from training.ranks.lifeline_server import Server, beat_seconds
    from training.ranks.wire import Wire, listen
    from training.world import World

    size = int(count)
    world = World(
        rank=0, size=size, local_rank=0, local_size=size, master_addr="127.0.0.1", master_port=1, launcher="none"
    )  # fmt: skip
    listener, (mine, theirs) = listen(), socket.socketpair()
    server = Server(
        world, listener, Wire(theirs), token="t", hang_timeout=600.0, stacks=folder, speak=lambda verdict: None
    )  # fmt: skip
    server.start()
    port, host = listener.getsockname()[1], socket.gethostname()
    wires = [Wire(mine), *(Wire(socket.create_connection(("127.0.0.1", port))) for _ in range(size - 1))]
    for rank, wire in enumerate(wires):
        wire.send(hello=rank, token="t", host=host)
    assert server.ident is not None
    clock = time.pthread_getcpuclockid(server.ident)
    time.sleep(1.0)
    beat = beat_seconds(world)
    used, began, beats = time.clock_gettime(clock), time.perf_counter(), 0
    while time.perf_counter() - began < LISTENED_SECONDS:
        beats += 1
        for number, wire in enumerate(wires):
            # Ranks speak one after another, not all at once.
            time.sleep(max(0.0, began + beat * (beats - 1 + number / size) - time.perf_counter()))
            wire.send(at=f"step {beats}: forward", is_watched=True, moves=beats)
            with contextlib.suppress(OSError):
                wire.receive()
    # Of rounds as long as a beat, also where a busy machine has made them longer.
    share = (time.clock_gettime(clock) - used) / (beats * beat)
    for wire in wires:
        wire.send(goodbye=True)
    server.join(5)
    return {"cpu_seconds": share}


TASKS: dict[str, Callable[..., dict[str, float]]] = {
    "index": opened, "open": opened, "first_batch": first_batch, "serve": serve
}  # fmt: skip


def do_task() -> None:
    """Do the task that the command line names and print what it took."""
    task, *arguments = sys.argv[1:]
    if task != "serve":
        # Torch and its like, which every start of a run takes, whatever the data.
        import data_pipeline.sources.source
        import data_pipeline.stream.workers  # noqa: F401
    before, began = status_bytes("VmRSS"), time.process_time()
    found = TASKS[task](*arguments)
    measured = {"cpu_seconds": time.process_time() - began, "memory": float(status_bytes("VmHWM") - before)}
    print(json.dumps(measured | found))
