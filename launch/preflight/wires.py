"""What the ranks have measured of the network and of their GPUs (training.ranks.fabric), judged."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from launch.preflight.verdict import Finding, Judgement, fail, slow_ones

WRONG = {
    "matmul": "a GPU computes a wrong matrix product; have it replaced",
    "inside": "a sum over its ranks is wrong",
}
OWN_STAGES = {
    "gpu": "no GPU for a rank",
    "matmul": "a GPU can't compute a matrix product",
    "join": "ranks could not join a process group",
    "inside": "a sum over its ranks came to no end",
}
"""What one node can fail at by itself, before others wait for it in vain."""


def judge(said: Mapping[int, Mapping[str, Any]], nodes: Mapping[str, Sequence[int]], skipped: str = "") -> Judgement:
    """Whether sums are right everywhere, and no node is much slower than the others.

    Args:
        said: fields of `training.ranks.fabric.Measured` by rank; of ranks that have gone silent there are none.
        nodes: ranks of each node, in the order in which the pairs were numbered.
        skipped: why nothing was measured.
    """
    if skipped:
        return Judgement(check="wires", line=f"not tried: {skipped}")
    names = list(nodes)
    home = {rank: name for name, ranks in nodes.items() for rank in ranks}
    on_gpu = any(each["device"] == "cuda" for each in said.values())
    inside = {name: min(rates) for name, ranks in nodes.items()
              if (rates := [said[rank]["inside"] for rank in ranks if rank in said and said[rank]["inside"]])}  # fmt: skip
    pairs = pair_rates(said, home, names)
    between = {
        name: statistics.median(rates) for name in names if (rates := [pairs[pair] for pair in pairs if name in pair])
    }
    flops = {name: min(rates) for name, ranks in nodes.items()
             if (rates := [said[rank]["flops"] / 1e12 for rank in ranks if rank in said and said[rank]["flops"]])}  # fmt: skip
    findings = [*_wrong(said, home, names), *([] if len(said) < len(home) else _stopped(said, home, names))]
    findings += slow_ones(_in_gb(inside), "sums inside the node at", "GB/s", is_shared=not on_gpu)
    findings += (
        slow_ones(_in_gb(between), "sums with other nodes at", "GB/s", is_shared=not on_gpu) if len(names) > 2 else []
    )
    findings += slow_ones(flops, "the slowest GPU computes", "TFLOP/s")
    return Judgement(check="wires", line=_line(said, inside, between, flops, len(home)), findings=findings)


def pair_rates(
    said: Mapping[int, Mapping[str, Any]], home: Mapping[int, str], names: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Bytes per second between two nodes: of all their ranks together, each as fast as its two ends saw it."""
    slower: dict[tuple[str, str], list[float]] = defaultdict(list)
    for rank, each in said.items():
        for number, rate in each["pairs"].items():
            one, other = sorted((home[rank], names[int(number)]), key=names.index)
            slower[one, other].append(rate)
    # Both ends have said it.
    return {pair: sum(rates) / 2 for pair, rates in slower.items()}


def _wrong(said: Mapping[int, Mapping[str, Any]], home: Mapping[int, str], names: Sequence[str]) -> list[Finding]:
    """Results that are not what they must be."""
    findings = []
    for word, text in WRONG.items():
        nodes = dict.fromkeys(home[rank] for rank, each in said.items() if word in each["wrong"])
        findings += [fail(text, node) for node in nodes]
    pairs = set[tuple[str, str]]()
    for rank, each in said.items():
        for word in each["wrong"]:
            pairs |= _pairs({rank: word}, home, names)
    findings += _of_pairs(pairs, "the sum of {} is wrong")
    if not findings and any("all" in each["wrong"] for each in said.values()):
        findings.append(fail("the sum over all ranks is wrong, and those of pairs of nodes are right"))
    return findings


def _stopped(said: Mapping[int, Mapping[str, Any]], home: Mapping[int, str], names: Sequence[str]) -> list[Finding]:
    """Ranks that could not go on though all are alive. Of those that only waited for them nothing is said."""
    for stage, text in OWN_STAGES.items():
        stopped = {home[rank]: each["error"] for rank, each in said.items() if each["stopped_at"] == stage}
        if stage == "join" and stopped.keys() == set(names):
            return [
                fail(f"{text}: {stopped[names[0]]}; may nodes talk to each other over the interface to MASTER_ADDR?")
            ]
        if stopped:
            return [fail(f"{text}: {error}", node) for node, error in stopped.items()]
    at = {rank: each["stopped_at"] or "" for rank, each in said.items()}
    # Who waits for a node that waits for another one is not the one to blame.
    mutual = {
        rank: stage for rank, stage in at.items()
        if any(stage == f"pair {names.index(home[other])}" and of == f"pair {names.index(home[rank])}" for other, of in at.items())
    }  # fmt: skip
    if pairs := _pairs(mutual or at, home, names):
        error = next(each["error"] for each in said.values() if (each["stopped_at"] or "").startswith("pair "))
        return _of_pairs(pairs, f"the sum of {{}} came to no end: {error}")
    if errors := [each["error"] for each in said.values() if each["stopped_at"] == "all"]:
        return [fail(f"the sum over all ranks came to no end, and those of pairs of nodes did: {errors[0]}")]
    return []


def _pairs(words: Mapping[int, str], home: Mapping[int, str], names: Sequence[str]) -> set[tuple[str, str]]:
    """Pairs of nodes, of what ranks say of "pair NUMBER"."""
    found = set()
    for rank, word in words.items():
        if word.startswith("pair "):
            one, other = sorted((home[rank], names[int(word.removeprefix("pair "))]), key=names.index)
            found.add((one, other))
    return found


def _of_pairs(pairs: set[tuple[str, str]], text: str) -> list[Finding]:
    """A finding for every pair, as one node's where that is in more of them than its counterpart."""
    counts = {node: sum(node in pair for pair in pairs) for pair in pairs for node in pair}
    findings = []
    for one, other in sorted(pairs):
        guilty = one if counts[one] > counts[other] else other if counts[other] > counts[one] else None
        findings.append(fail(text.format(f"{one} and {other}"), guilty))
    return findings


def _in_gb(rates: Mapping[str, float]) -> dict[str, float]:
    return {node: rate / 1e9 for node, rate in rates.items()}


def _line(
    said: Mapping[int, Mapping[str, Any]], inside: Mapping[str, float], between: Mapping[str, float],
    flops: Mapping[str, float], size: int,
) -> str:  # fmt: skip
    if size == 1:
        return "nothing to measure: one rank"
    rates = [each["all"] for each in said.values() if each["all"]]
    parts = [f"{statistics.median(values) / 1e9:.2g} GB/s {where}"
             for values, where in ((list(inside.values()), "inside nodes"), (list(between.values()), "between two nodes"),
                                   (rates, "over all ranks")) if values]  # fmt: skip
    if flops:
        parts.append(f"{statistics.median(flops.values()):.0f} TFLOP/s per GPU in bf16")
    is_exact = len(rates) == size and not any(each["wrong"] for each in said.values())
    return (", ".join(parts) or "no sum came to an end") + ("; all sums exact" if is_exact else "")
