"""What a node says of itself: memory, shared memory, open files."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from typing import Any

from launch.preflight.verdict import Finding, Judgement, fail, readable, warn
from training.costs.fitting import available_memory

SHARED_MEMORY_PER_RANK = 64 * 2**20
"""Bytes in /dev/shm below which NCCL's buffers between the GPUs of a node get tight; containers have as little by default."""


def look() -> dict[str, Any]:
    """Bytes of free memory and of free /dev/shm (None: there is none), and how many files a process may open."""
    try:
        shared = os.statvfs("/dev/shm")
        free = shared.f_bavail * shared.f_frsize
    except OSError:
        free = None
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"memory": available_memory(), "shared_memory": free, "open_files": files}


def open_files_needed(size: int) -> int:
    """Files that a rank opens at most: connections to all others in a few groups, the data's shards, its own."""
    return 256 + 4 * size


def judge(hosts: Mapping[str, Mapping[str, Any]], ranks: Mapping[str, int], copy_bytes: float | None) -> Judgement:
    """Whether every node has what a run takes of it.

    Args:
        hosts: what `look` said, by node.
        ranks: number of ranks on each node.
        copy_bytes: host memory that each rank copies checkpoints to; None: not known.
    """
    findings: list[Finding] = []
    needed_files = open_files_needed(sum(ranks.values()))
    for node, host in hosts.items():
        needed = (copy_bytes or 0) * ranks[node]
        if needed > host["memory"]:
            findings.append(fail(
                f"{readable(host['memory'])} of memory are free, and copies of checkpoints need {readable(needed)}; use more "
                "nodes, ask for more memory (--mem), or set checkpoint.background = false", node,
            ))  # fmt: skip
        shared = host["shared_memory"]
        if ranks[node] > 1 and (shared is None or shared < SHARED_MEMORY_PER_RANK * ranks[node]):
            has = "there is no /dev/shm" if shared is None else f"/dev/shm has {readable(shared)} free"
            findings.append(warn(f"{has}, which is little for {ranks[node]} ranks; give the container more", node))
        if 0 <= host["open_files"] < needed_files:
            findings.append(warn(
                f"a process may open {host['open_files']:,} files, which is little for {sum(ranks.values())} ranks; "
                f"ulimit -n {needed_files} (or srun --propagate=NOFILE) raises it", node,
            ))  # fmt: skip
    if not hosts:
        return Judgement(check="hosts", line="no node reported")
    memory = min(host["memory"] for host in hosts.values())
    copies = "" if copy_bytes is None else f", copies of checkpoints need {readable(copy_bytes * max(ranks.values()))}"
    return Judgement(check="hosts", line=f"{readable(memory)} of memory free{copies}", findings=findings)
