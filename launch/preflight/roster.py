"""Who is there: ranks and their nodes, and the nodes of ranks that have not come."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from launch.preflight.verdict import Finding, Judgement, fail
from training.world import World, expand_nodes, tasks_on_node


def own_node(environment: Mapping[str, str]) -> str:
    """Name of this node, the scheduler's if it has one."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def presence(world: World, environment: Mapping[str, str]) -> dict[str, Any]:
    """What a rank says first."""
    return {"node": own_node(environment), "local_rank": world.local_rank}


def nodes_of(present: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """The node of every rank that is there.

    Machines that share a name (of containers, say) are told apart by the first of their ranks.
    """
    by_name: dict[str, list[list[int]]] = {}
    for rank in sorted(present):
        machines = by_name.setdefault(present[rank]["node"], [[]])
        if machines[-1] and present[rank]["local_rank"] <= present[machines[-1][-1]]["local_rank"]:
            machines.append([])
        machines[-1].append(rank)
    found: dict[int, str] = {}
    for name, machines in by_name.items():
        for ranks in machines:
            label = name if len(machines) == 1 else f"{name} (from rank {ranks[0]})"
            found |= dict.fromkeys(ranks, label)
    return dict(sorted(found.items()))


def expected(environment: Mapping[str, str]) -> list[str] | None:
    """The node of each rank as Slurm places them in blocks; None when it isn't Slurm that does."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    if "SLURM_STEP_ID" not in environment or not nodes or not tasks:
        return None
    try:
        names = expand_nodes(nodes)
        return [name for index, name in enumerate(names) for _ in range(tasks_on_node(tasks, index))]
    except (ValueError, IndexError):
        return None


def node_of_missing(rank: int, nodes: Mapping[int, str], planned: Sequence[str] | None, local_size: int) -> str | None:
    """The node of a rank that has not come.

    Slurm's plan says it, if it is right about those who have come; else a rank of the same node may be there.
    """
    if planned is not None and rank < len(planned) and all(planned[each] == node for each, node in nodes.items()):
        return planned[rank]
    beside = {node for each, node in nodes.items() if each // local_size == rank // local_size}
    return beside.pop() if planned is None and len(beside) == 1 and local_size > 1 else None


def judge(
    size: int,
    nodes: Mapping[int, str],
    missing: Mapping[int, str | None],
    lost: Mapping[int, str],
    unseen: Mapping[int, Mapping[str, str]],
    limit: float,
) -> Judgement:
    """Whether everybody came, and stayed. Where nobody came but from rank 0's node, that may be the sick one: none is named.

    Args:
        size: number of ranks.
        nodes: node of each rank that came.
        missing: ranks that never came, and their nodes where known.
        lost: ranks that came and went silent, and what they were busy with.
        unseen: by rank what it could not look at, and why.
        limit: seconds that were waited for them.
    """
    findings: list[Finding] = []
    is_alone = set(nodes.values()) == {first := nodes[0]}
    for node in dict.fromkeys(missing.values()):
        text = f"{_ranks([rank for rank, name in missing.items() if name == node])}: no report within {limit:g} s"
        if is_alone and node != first:
            where = f"{node}: " if node else ""
            findings.append(
                fail(f"{where}{text}; nobody came but {first} itself, which may be what the others can't reach")
            )
        else:
            findings.append(fail(text, node))
    for (node, activity), ranks in _grouped(nodes, lost).items():
        findings.append(fail(f"{_ranks(ranks)}: no answer within {limit:g} s; last busy with: {activity}", node))
    for rank, things in unseen.items():
        findings += [fail(f"its {what} can't be looked at: {why}", nodes[rank]) for what, why in things.items()]
    there = size - len(missing) - len(lost)
    came = f"all {size}" if there == size else f"{there} of {size}"
    return Judgement(check="ranks", line=f"{came} reported, of {len(set(nodes.values()))} node(s)", findings=findings)


def _grouped(nodes: Mapping[int, str], lost: Mapping[int, str]) -> dict[tuple[str, str], list[int]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for rank, activity in sorted(lost.items()):
        groups.setdefault((nodes[rank], activity or "its start"), []).append(rank)
    return groups


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks))}"


def file_name(node: str) -> str:
    """A node's name as part of a file's."""
    return re.sub(r"[^\w.-]", "_", node)
