"""Saving and resuming: how long training stands still, how much slower it is meanwhile, bytes on disk, memory, time to resume.

Everybody saves the same: fp32 masters and both moments of what this system's engine trains under ZeRO-3, from random rows, on the
same disk. A process saves in one way only, several times, with steps in between:

  ours           a copy between two steps, written by a process of its own and read back (training/saving.py)
  ours_blocking  checkpoint.background = false; memory only
  torch          torch.save of a rank's slices, and fsync
  deepspeed      DeepSpeed's save_checkpoint without what is frozen; it does no fsync, so it may return before the disk has anything
  deepspeed_all  the same with what is frozen: its default; bytes only
  async          torch.distributed.checkpoint's async_save, with its own process and memory that is used again

A stall is the time that training waits for a save, at the boundaries behind it, too; the first save of a process, which also makes
memory and processes, is a claim of its own. The slow-down compares steps of which all lie in a save with those between saves. With as
many ranks as cores the writer gets what the ranks leave. Before a resume the files are dropped from memory, and what was loaded is
compared with what was saved. Memory is what ranks and their helpers have at most, shared pages counted once, beyond the most that steps
without saves take. Contenders take turns; ratios are taken within a round. --bench measures LoRA, on two ranks in all ways, and on
one rank ours beside torch.save, which stalls are promised against.

    python benchmarks/checkpoint.py [--quick | --bench] [--json PATH] [--dir FOLDER]
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers  # noqa: E402
from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.data_corpus import library_texts  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
DS_CONFIG = ROOT / "ds_configs" / "zero3_cpu.json"
PACKAGES = ("torch", "deepspeed", "safetensors")
TORCH, DEEPSPEED = (f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
PEER = {
    "torch": f"{TORCH} torch.save + fsync", "deepspeed": f"{DEEPSPEED} save_checkpoint, not synced",
    "deepspeed_all": f"{DEEPSPEED} save_checkpoint with frozen weights", "async": f"{TORCH} async_save",
}  # fmt: skip
TIMED = ("ours", "torch", "deepspeed", "async")
WEIGHED = ("ours", "torch", "deepspeed", "deepspeed_all")
IN_MEMORY = ("ours", "ours_blocking", "torch", "deepspeed", "async")
MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs", "devtmpfs"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and what trains in it."""

    name: str
    hidden: int
    layers: int
    rank: int
    """Of LoRA; 0: full finetuning."""
    vocab: int = 2048
    seq_len: int = 32

    def arguments(self) -> tuple[object, ...]:
        """For the contender."""
        return (
            "--hidden", self.hidden, "--layers", self.layers, "--rank", self.rank, "--vocab", self.vocab,
            "--seq-len", self.seq_len,
        )  # fmt: skip


LORA = Case(name="lora", hidden=512, layers=8, rank=256)
"""237 MB of state."""
FULL = Case(name="full", hidden=768, layers=10, rank=0, vocab=8192)
"""1.0 GB."""
SMALL = Case(name="small", hidden=320, layers=6, rank=256)
"""110 MB, for --quick."""
WEIGHED_LORA = Case(name="lora_r16", hidden=1024, layers=4, rank=16, vocab=32_000)
"""An adapter of usual rank beside its base, to be weighed."""
EXPORTED = Case(name="exported", hidden=512, layers=24, rank=0, vocab=4096)
"""A model many times as large as its largest parameter."""


class Bench:
    """Runs contenders in a folder on a disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, way: str, case: Case, ranks: int, saves: int, *more: object, keeps: bool = False) -> dict[str, Any]:
        """What a contender printed; its files stay in `place` if `keeps`."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        try:
            return peers.run(
                sys.executable, "saves.py", "--way", way, "--dir", self.place, "--ds-config", DS_CONFIG, "--saves", saves,
                *case.arguments(), *more, scratch=self._folder, timeout=1200, ranks=ranks,
            )  # fmt: skip
        finally:
            if not keeps:
                shutil.rmtree(self.place)

    @property
    def place(self) -> Path:
        """Where the contender saves."""
        return self._folder / "saved"

    @property
    def scratch(self) -> Path:
        """For everything else."""
        return self._folder


def timings(
    bench: Bench, case: Case, ranks: int, rounds: int, saves: int, ways: Sequence[str] = TIMED
) -> dict[str, list[dict[str, Any]]]:
    """What every contender printed in every round."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for order in turns(ways, rounds):
        for way in order:
            result = bench.run(way, case, ranks, saves)
            found[way].append(result)
            slower = slowdown(result)
            print(
                f"  {case.name:5} {ranks} rank(s)  {way:9} {result['state_bytes'] / 1e6:6.0f} MB  "
                f"stall {1e3 * statistics.median(result['stall_seconds']):7.1f} ms, first {1e3 * result['first_stall_seconds']:7.1f} ms  "
                f"complete after {statistics.median(result['write_seconds']):5.2f} s  "
                f"steps of {1e3 * statistics.median(result['quiet_seconds']):6.0f} ms"
                + (f" x {slower:.3f} in {len(result['busy_seconds'])}" if slower is not None else "")
                + "".join(
                    f"  {name} {result[f'{name}_seconds']:.2f} s"
                    for name in ("resume", "load")
                    if result[f"{name}_seconds"] is not None
                ),
                flush=True,
            )
    return found


def slowdown(result: dict[str, Any]) -> float | None:
    """Seconds of a step in a save over those of one between saves; None where no step was all in a save."""
    if not result["busy_seconds"]:
        return None
    return statistics.median(result["busy_seconds"]) / statistics.median(result["quiet_seconds"])


def timing_claims(case: Case, ranks: int, found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Stalls, slow-down, resume, against those that took part."""
    label = f"{case.name}_{ranks}rank{'s' if ranks > 1 else ''}"

    def figures(way: str, name: str) -> list[float]:
        values = [result[name] for result in found[way]]
        return [statistics.median(value) if isinstance(value, list) else value for value in values]

    claims = []
    stalls = figures("ours", "stall_seconds")
    for way, goal in (("torch", "<=0.05"), ("deepspeed", "<=0.05"), ("async", "<=1")):
        if way in found:
            claims.append(claim(f"stall_over_{way}_{label}", stalls, figures(way, "stall_seconds"), goal, PEER[way]))
    first = figures("ours", "first_stall_seconds")
    claims.append(claim(f"first_stall_{label}", first, figures("torch", "first_stall_seconds"), "<=1", PEER["torch"]))
    for way, goal in (("ours", "<=1.03"), ("async", "none")):
        ratios = [ratio for result in found.get(way, []) if (ratio := slowdown(result)) is not None]
        if ratios:
            name = f"slowdown_{label}" if way == "ours" else f"slowdown_of_async_{label}"
            claims.append(claim(name, ratios, [1.0] * len(ratios), goal, "steps without a save"))
    if "deepspeed" in found:
        theirs = figures("deepspeed", "load_seconds")
        for name, ours in (("resume", "resume_seconds"), ("resume_unverified", "load_seconds")):
            claims.append(
                claim(f"{name}_{label}", figures("ours", ours), theirs, "<=1", f"{DEEPSPEED} load_checkpoint")
            )
    return claims


def weigh(bench: Bench, case: Case, ways: Sequence[str] = WEIGHED) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Bytes on disk, of a run of one rank."""
    found = {way: bench.run(way, case, 1, 0) for way in ways}
    state = found["ours"]["state_bytes"]
    for way, result in found.items():
        print(f"  {case.name}  {way:13} {result['bytes'] / 1e6:7.2f} MB on disk for {state / 1e6:.2f} MB of state")
    own = [found["ours"]["bytes"]]
    claims = [claim(f"bytes_{case.name}", own, [state], "<=1.05", "12 bytes per trained weight")]
    claims += [
        claim(f"bytes_over_{way}_{case.name}", own, [found[way]["bytes"]], "<=1.05", PEER[way]) for way in ways[1:]
    ]
    return claims, found


def memory(
    bench: Bench, case: Case, ranks: int, saves: int, ways: Sequence[str] = IN_MEMORY
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Memory that saving takes beyond the steps', in units of what is saved."""
    found = {way: bench.run(way, case, ranks, saves, "--memory") for way in ways}
    extra = {way: max(0.0, result["with_bytes"] - result["without_bytes"]) for way, result in found.items()}
    for way, size in extra.items():
        print(
            f"  {case.name:5} {ranks} rank(s)  {way:13} {size / 2**20:6.0f} MiB more, {size / found[way]['state_bytes']:.2f} of the state"
        )
    state = [found["ours"]["state_bytes"]]
    claims = [
        claim(f"extra_memory_{case.name}_{ranks}", [extra["ours"]], state, "<=1.25", "what is saved"),
        claim(f"extra_memory_blocking_{case.name}_{ranks}", [extra["ours_blocking"]], state, "<=0.1", "what is saved"),
    ]
    return claims, found


def export(bench: Bench, case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """The memory that an export takes, beyond that of its imports, over the bytes of the exported model."""
    from data_pipeline.demo.tokenizer import train_tokenizer

    tokenizer = bench.scratch / "tokenizer.model"
    tokenizer.write_bytes(train_tokenizer([list(library_texts(500_000))], 1000))
    bench.run("ours", case, 2, 0, "--tokenizer", tokenizer, keeps=True)
    out = bench.scratch / "exported"
    without = peak_of([sys.executable, "-c", "import training.checkpoint.export"])
    beside = peak_of(
        [sys.executable, "-m", "training.checkpoint", "export", str(bench.place / "run"), "--out", str(out)]
    )
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"  export of {size / 2**20:.0f} MiB: {(beside - without) / 2**20:.0f} MiB of memory beyond its imports'")
    figures = {"model_bytes": size, "imports_bytes": without, "export_bytes": beside}
    return claim("export_memory", [beside - without], [size], "<=0.25", "the exported model"), figures


def peak_of(command: list[str]) -> int:
    """The most memory of its own, without mapped files, that a process has had."""
    highest = 0
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | peers.ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while process.poll() is None:
            highest = max(highest, anonymous_bytes(Path(f"/proc/{process.pid}/status")))
            time.sleep(0.005)
        assert process.stdout is not None
        if process.returncode:
            raise peers.PeerError(f"{' '.join(command)} failed:\n{process.stdout.read()}")
    return highest


def anonymous_bytes(status: Path) -> int:
    """RssAnon of a process; 0 once it has ended."""
    try:
        lines = status.read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def file_system(folder: Path, mounts: str) -> str:
    """The kind of file system that a folder is on, by the lines of /proc/mounts."""
    entries = (line.split()[1:3] for line in mounts.splitlines())
    # Of mounts on the same folder the last one counts.
    around = [(Path(place.replace("\\040", " ")), kind) for place, kind in entries]
    found = [
        (len(place.parts), number, kind) for number, (place, kind) in enumerate(around) if folder.is_relative_to(place)
    ]
    return max(found)[2]


def chosen(names: str, cases: Iterable[Case]) -> list[Case]:
    """The cases with these names."""
    return [case for case in cases if case.name in names.split(",")]


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(
        __doc__, quick="one small case, on two ranks only", bench="LoRA; on one rank ours and torch.save only"
    )
    parser.add_argument("--dir", type=Path, help="folder on the disk to save to; $TMPDIR or /var/tmp unless given")
    parser.add_argument("--cases", help="which of lora and full; both unless given, and lora with --bench")
    parser.add_argument("--ranks", help="numbers of ranks; 1,2 unless given, and 2 with --quick")
    parser.add_argument(
        "--rounds", type=int,
        help="turns of every contender, 1 or the next multiple of their number; 2, and 1 with --quick",
    )  # fmt: skip
    asked = parser.parse_args()
    folder: Path = asked.dir or Path(os.environ.get("TMPDIR", "/var/tmp"))
    kind = file_system(folder.resolve(), Path("/proc/mounts").read_text())
    if kind in MEMORY_FILE_SYSTEMS:
        parser.error(f"--dir {folder}: is {kind}, which is memory; name a folder on a disk")
    quick = asked.size == "quick"
    names = asked.cases or ("lora" if asked.size == "bench" else "lora,full")
    cases = [SMALL] if quick else chosen(names, (LORA, FULL))
    ranks = [int(number) for number in (asked.ranks or ("2" if quick else "1,2")).split(",")]
    rounds, saves = asked.rounds or (1 if quick else 2), 3 if asked.size == "full" else 2
    # Otherwise DeepSpeed says that it finds no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    claims: list[dict[str, Any]] = []
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="palimpsest-", dir=folder) as temporary:
        bench = Bench(Path(temporary))
        for case in cases:
            for number in ranks:
                # With --bench on one rank only what stalls are promised against.
                ways = TIMED[:2] if asked.size == "bench" and number == 1 else TIMED
                found = timings(bench, case, number, rounds, saves, ways)
                measured[f"{case.name}_{number}"] = found
                claims += timing_claims(case, number, found)
            more, measured[f"memory_{case.name}"] = memory(
                bench, case, max(ranks), saves, IN_MEMORY[: None if asked.size == "full" else 2]
            )
            claims += more
        more, measured["bytes"] = weigh(bench, WEIGHED_LORA, WEIGHED[: None if asked.size == "full" else 3])
        line, measured["export"] = export(bench, EXPORTED)
        claims += [*more, line]
    show(claims)
    if asked.json:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        settings = {
            "cases": [case.__dict__ for case in cases], "ranks": ranks, "threads": 1, "file_system": kind, "versions": versions,
        }  # fmt: skip
        write_json(asked.json, asked.size, {"settings": settings, "measured": measured, "claims": claims})


if __name__ == "__main__":
    peers.reported(main)
