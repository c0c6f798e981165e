"""The tables of docs/scaling.md as lines of Markdown: a pure function of what was predicted and measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.scaling_predictions import GPUS_PER_NODE, KINDS, MODELS, ROWS
from launch.plan import cluster as known
from launch.plan.units import decimal, duration
from launch.preflight.hosts import open_files_needed
from training.costs.memory import GiB
from training.ranks.lifeline_server import BEATS_PER_SECOND, SILENT_BEATS

RANKS = 1024
"""Of the largest run that is looked at."""
STORAGE_RATE = 1e9
"""Bytes per second of a node, as the plans have it (`--storage-bandwidth`)."""
MANY_DOCUMENTS, MANY_RUNS = 10**9, 10**4


def sections(predicted: dict[str, Any], growth: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Lines by the name of their place in the page."""
    plans = predicted["predictions"]
    return {
        **{f"plan_{kind}": plan_table(plans, kind) for kind in ("none", "lora")},
        "monteclora": monteclora_line(plans),
        "placements": placement_table(plans),
        "networks": network_table(predicted["networks"]),
        "checked": checked_table(predicted["checked"]),
        "comparison": comparison_table(predicted["comparison"]),
        "groups": group_table(predicted["groups"]),
        "weak_scaling": weak_scaling_table(predicted["weak_scaling"]),
        "growth": growth_table(growth),
        "breaks": breaks_table(plans, growth),
    }


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: int) -> list[str]:
    """A Markdown table whose columns from number `right` on are numbers."""
    rule = "".join("---|" if number < right else "--:|" for number in range(len(columns)))
    return [f"| {' | '.join(columns)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]


def plan_table(plans: list[dict[str, Any]], kind: str) -> list[str]:
    """What to take, and what that gives, for each model and number of GPUs."""
    rows = []
    for each in plans:
        if each["kind"] != kind or each["model"] not in MODELS:
            continue
        if each["model"].startswith("llama-3") and each["gpus"] not in (8, 64, 1024):
            continue
        start = [MODELS[each["model"]], f"{each['gpus']:,}", f"{each['rows']:,}"]
        chosen = each["recommended"]
        if chosen is None:
            rows.append([*start, "nothing fits", *[""] * 6, "memory"])
            continue
        rows.append([
            *start, chosen["placement"], str(chosen["micro_batch_rows"]), str(chosen["recomputed_layers"]),
            f"{chosen['memory_bytes'] / GiB:.0f}", f"{chosen['step_seconds']:.3g}", f"{chosen['tokens_per_second_per_gpu']:,.0f}",
            f"{chosen['goodput']:.2%}", ", ".join(each["limits"]),
        ])  # fmt: skip
    columns = ("model", "GPUs", "rows per step", "placement", "micro-batch", "layers again", "GiB", "s per step", "tokens/s/GPU",
               "goodput", "limited by")  # fmt: skip
    return table(columns, rows, 1)


def monteclora_line(plans: list[dict[str, Any]]) -> list[str]:
    """How much slower MonteCLoRA is in the predictions than LoRA."""
    speeds = {
        kind: {(each["model"], each["gpus"]): each["recommended"]["tokens_per_second_per_gpu"] for each in plans if each["kind"] == kind}
        for kind in ("lora", "monteclora")
    }  # fmt: skip
    worst = min(speeds["monteclora"][key] / speeds["lora"][key] for key in speeds["lora"])
    return [
        f"Of all {len(speeds['lora'])} plans of LoRA, {KINDS['monteclora']} has the same placement and at least {worst:.4f} of the speed: the plan "
        "counts its weights, gradients and states, and not the operators that draw the noise."
    ]


def placement_table(plans: list[dict[str, Any]]) -> list[str]:
    """LoRA's speed in each placement at its best."""
    names = ("replicated", "zero3", "zero3_hpz", "zero3_offload")
    rows = []
    for each in plans:
        if each["kind"] == "lora" and each["model"].startswith("llama-2") and each["gpus"] in (8, 64, 256, 1024):
            speeds = [each["tokens_per_second_per_gpu"].get(name) for name in names]
            shown = [f"{speed:,.0f}" if speed else "–" for speed in speeds]
            rows.append([MODELS[each["model"]], f"{each['gpus']:,}", *shown])
    return table(("model", "GPUs", *names), rows, 1)


def network_table(networks: list[dict[str, Any]]) -> list[str]:
    """What is left on slower networks, and what to take there."""
    rows = [
        [
            MODELS[each["model"]], KINDS[each["kind"]], f"{each['gigabits']:g}", each["recommended"]["placement"],
            *(f"{speed:,.0f}" if (speed := each["tokens_per_second_per_gpu"].get(name)) else "–" for name in ("replicated", "zero3", "zero3_hpz")),
            ", ".join(each["limits"]),
        ]
        for each in sorted(networks, key=lambda each: (each["model"] != "llama-2-7b", each["kind"] != "none", -each["gigabits"]))
    ]  # fmt: skip
    return table(
        ("model", "method", "Gb/s per GPU", "recommended", "replicated", "zero3", "zero3_hpz", "limited by"), rows, 2
    )


def checked_table(errors: dict[str, dict[str, float]]) -> list[str]:
    """What was compared with measurements of our own, and by how much it was off."""
    peak, wire = errors["predicted_peak_error"], errors["predicted_wire_error"]
    rows = [
        ["peak memory of a step", f"{peak['n']:.0f} setups on two CPU ranks, counted by torch's profiler (`benchmarks/memory_model.py`); the model was corrected on the same setups", f"{peak['max']:.1%}"],
        ["bytes that a rank sends in a step", f"the same {wire['n']:.0f}, counted in the collectives; section 3 has four more setups, on up to four ranks", f"{wire['max']:.4%}"],
        ["FLOPs of a step", "torch's counter (`tests/unit/training/costs/`)", "none"],
        ["seconds of a step on GPUs", "nothing of our own; the publications below", "see there"],
    ]  # fmt: skip
    return table(("what", "against", "largest error"), rows, 2)


def comparison_table(compared: list[dict[str, Any]]) -> list[str]:
    """Published speeds beside predicted ones."""
    again = {0.0: "none", 0.5: "half", 1.0: "all"}
    rows = [
        [
            each["source"], each["model"], each["method"], f"{each['gpus']:,} {each['gpu']}", f"{each['seq_len']:,}",
            f"{each['micro_batch_rows']}", again[each["recomputed"]], each["placement"], f"{each['published']:,.0f}",
            f"{each['predicted']:,.0f}", f"{round(each['error'], 2) + 0.0:+.0%}" + (" *" if each["made_from"] else ""), each["note"],
        ]
        for each in compared
    ]  # fmt: skip
    columns = (
        "source",
        "model",
        "method",
        "GPUs",
        "tokens per row",
        "rows",
        "layers again",
        "as",
        "published",
        "predicted",
        "error",
        "",
    )
    return table(columns, rows, 4)


def group_table(groups: dict[str, dict[str, float]]) -> list[str]:
    """Errors by group."""
    rows = [
        [name, f"{each['n']:.0f}", f"{each['median']:+.0%}", f"{each['lowest']:+.0%} to {each['highest']:+.0%}", f"{each['within']:.0f}"]
        for name, each in groups.items()
    ]  # fmt: skip
    return table(("trainings without *", "number", "median error", "range", "within 25 %"), rows, 1)


def weak_scaling_table(scaling: list[dict[str, Any]]) -> list[str]:
    """What is left of a GPU's speed on many nodes."""
    rows = [
        [each["model"], f"{each['from']} to {each['to']}", f"{each['published']:.3f}", f"{each['predicted']:.3f}" + (" *" if each["made_from"] else "")]
        for each in scaling
    ]  # fmt: skip
    return table(("model", "GPUs", "published", "predicted"), rows, 2)


def growth_table(growth: list[dict[str, Any]]) -> list[str]:
    """Every figure at its three sizes, with its slope."""
    rows = [
        [
            each["size"], each["figure"], *(f"{short(size)}: {short(value)}" for size, value in zip(each["sizes"], each["values"], strict=True)),
            slope(each["slope"]), slope(each["last"]), slope(each["expected"]), each["note"],
        ]
        for each in growth
    ]  # fmt: skip
    return table(("by", "what", "small", "middle", "large", "slope", "last", "expected", ""), rows, 2)


def short(value: float) -> str:
    """A number in three digits, whole ones in full."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def slope(value: float | None) -> str:
    """A slope, or that there is none; no minus before a zero."""
    return "–" if value is None else f"{value + 0.0 if abs(value) >= 0.005 else 0.0:.2f}"


def breaks_table(plans: list[dict[str, Any]], growth: list[dict[str, Any]]) -> list[str]:
    """What would give way first: numbers that follow from what was measured or predicted, and what there is against it."""
    by_figure = {(each["size"], each["figure"]): each for each in growth}

    def per_unit(size: str, figure: str) -> float:
        """What one more unit costs, between the two largest sizes."""
        each = by_figure[size, figure]
        (_, a, b), (_, x, y) = each["sizes"], each["values"]
        return float((y - x) / (b - a))

    def at(size: str, figure: str, number: float) -> float:
        """On the straight line through the two largest sizes."""
        each = by_figure[size, figure]
        return float(each["values"][-1] + (number - each["sizes"][-1]) * per_unit(size, figure))

    def largest(size: str, figure: str) -> float:
        return float(by_figure[size, figure]["values"][-1])

    def times(size: str, figure: str) -> float:
        values = by_figure[size, figure]["values"]
        return float(values[-1] / values[0])

    def plan(model: str, kind: str, gpus: int) -> dict[str, Any]:
        found: dict[str, Any] = next(
            each["recommended"] for each in plans if (each["model"], each["kind"], each["gpus"]) == (model, kind, gpus)
        )
        return found

    sockets = per_unit("ranks", "sockets of rank 0")
    manifest = "bytes of a checkpoint's manifest"
    entry = per_unit("ranks", manifest)
    index = per_unit("documents", "index, bytes on disk")
    state = largest("documents", "bytes of the stream's state, 8 lanes") / 8
    runs, first, memory = "run directories", "collect, processor seconds", "collect, peak memory, MiB"
    small, big = plan("llama-2-70b", "none", 8), plan("llama-2-70b", "none", RANKS)
    write_seconds = small["checkpoint_bytes"] / STORAGE_RATE
    hash_seconds = small["checkpoint_bytes"] / GPUS_PER_NODE / known.HASH_RATE
    lifelines = largest("lifelines", "processor seconds of their server, per second")
    beat = RANKS / BEATS_PER_SECOND
    rows = [
        ["rows of the global batch", f"{ROWS} rows are one per GPU at {ROWS} GPUs; on {RANKS:,} a step has {RANKS:,} rows, {RANKS * 4096 / 1e6:.1f} M tokens, which is another recipe",
         "`train.sequence_parallel` lets up to as many ranks share a row as there are key/value heads; tensor and pipeline parallelism are not there"],
        ["memory of 70B on one node", f"full finetuning fits with offload only, which takes {small['host_bytes_per_node'] / GiB:,.0f} GiB of the node's memory",
         "two nodes or more, or LoRA; `--host-memory` tells the plan what there is"],
        ["a 70B checkpoint", f"{decimal(big['checkpoint_bytes'])}; at 1 GB/s per node complete after {duration(small['checkpoint_write_seconds'])} from one node: written in {duration(write_seconds)}, read back in as many, "
         f"and hashed both times, {duration(hash_seconds)} each; after {duration(big['checkpoint_write_seconds'])} from 128, which asks the file system for 128 GB/s", "written beside training; `--storage-bandwidth` and `--checkpoint-every` of the plan; `checkpoint.every_steps` and `keep`"],
        ["open files of rank 0", f"{sockets:.1f} sockets more per rank, of the store and of gloo, and one of its lifeline: about {at('ranks', 'sockets of rank 0', RANKS) + RANKS:,.0f} at {RANKS:,} ranks, before NCCL; a usual soft limit is 1,024",
         f"preflight asks for {open_files_needed(RANKS):,} at {RANKS:,} ranks and says `ulimit -n`; the limit is not raised by a run itself"],
        ["lifelines at rank 0", f"{lifelines:.0%} of a core at {RANKS:,} connections, in rank 0's process; a beat every {beat:.1f} s, so silence shows after {SILENT_BEATS * beat:.0f} s",
         f"at most {BEATS_PER_SECOND} messages per second at any size; a death, which closes its connection, shows at once; a tree of servers would be the next step"],
        ["an index of 10⁹ documents", f"{index:.1f} bytes per document: {decimal(at('documents', 'index, bytes on disk', MANY_DOCUMENTS))} on disk, mapped; opening takes {duration(at('documents', 'opening, processor seconds', MANY_DOCUMENTS))} of a processor in every rank that opens it",
         "Parquet, Arrow and compressed .jsonl have an entry per block of documents; plain .jsonl and MDS one per document"],
        ["state of the lanes", f"{state:,.0f} bytes per lane: {decimal(state * RANKS)} for {RANKS:,} lanes in a checkpoint's manifest", "none needed"],
        ["a checkpoint's manifest", f"{entry:.0f} bytes per rank: {decimal(at('ranks', manifest, RANKS))} at {RANKS:,} ranks, beside {decimal(state * RANKS)} of lanes; {RANKS:,} files in a folder",
         "none needed for the bytes; a file per rank is what a metadata server sees at every save"],
        ["many runs", f"a first `evals collect` takes {per_unit(runs, first) * 1e3:.0f} ms and {per_unit(runs, memory) * 1024:,.0f} KiB per run more: {duration(at(runs, first, MANY_RUNS))} and {at(runs, memory, MANY_RUNS) / 1024:.2f} GiB for {MANY_RUNS:,}; "
         f"a later one {duration(at(runs, 'collect, nothing new, processor seconds', MANY_RUNS))}", "collect a study's folder instead of all; only what is new is read again"],
        ["long logs", f"10⁵ lines of metrics.jsonl against 10³: `evals collect` takes {times('lines of metrics.jsonl', 'collect, processor seconds'):.2f} times as long, "
         f"`launch status` {times('lines of metrics.jsonl', 'status, processor seconds'):.2f} times", "none needed: both read some of the lines only"],
        ["failures", f"at one per 5,000 hours and node, 128 nodes fail every {5000 / 128:.0f} h; {big['goodput']:.2%} of the time counts for 70B", "`checkpoint.every_steps` as the plan says; a requeued job goes on by itself"],
    ]  # fmt: skip
    return table(("what", "the number", "what there is against it"), rows, 3)
