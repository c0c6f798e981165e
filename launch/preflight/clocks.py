"""Clocks of the nodes, measured against rank 0's: the best of several exchanges, as NTP does it.

Rank 0 asks at t0, the node answers with its time t, the answer is there at t1: the node is ahead by t - (t0 + t1) / 2, which is
known to (t1 - t0) / 2. The exchange with the shortest way there and back knows best.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from launch.preflight.exchange import Exchange, Silence
from launch.preflight.verdict import Finding, Judgement, fail, others, warn

EXCHANGES = 5
SUSPICIOUS, TOO_MUCH = 1.0, 30.0
"""Seconds that a clock may be off: timestamps of a run, and of files on shared storage, are compared across nodes."""


def measure(exchange: Exchange, leaders: Mapping[str, int]) -> dict[str, float]:
    """Seconds that each node's clock is ahead of rank 0's; on the others, {}.

    Args:
        exchange: the conversation.
        leaders: of each node the rank that answers for it.
    """
    rank = exchange.rank
    if rank != 0:
        for turn in range(EXCHANGES):
            exchange.told(f"clock/{rank}/{turn}/asked")
            exchange.put(f"clock/{rank}/{turn}/answered", time.time())
        return {}
    ahead = {}
    for node, leader in leaders.items():
        if leader == 0 or leader not in exchange.present:
            continue
        try:
            ahead[node] = _ahead(exchange, leader)
        except Silence:
            exchange.lose(leader)
    return ahead


def _ahead(exchange: Exchange, leader: int) -> float:
    best = (float("inf"), 0.0)
    for turn in range(EXCHANGES):
        asked = time.time()
        exchange.put(f"clock/{leader}/{turn}/asked", True)
        theirs = exchange.take(f"clock/{leader}/{turn}/answered", exchange.limit)
        answered = time.time()
        best = min(best, (answered - asked, theirs - (asked + answered) / 2))
    return best[1]


def judge(ahead: Mapping[str, float], first: str) -> Judgement:
    """Whether clocks agree; most of them decide which is right, and nobody where no time is that of most nodes.

    Args:
        ahead: seconds that each other node's clock is ahead of that of the node `first`.
        first: rank 0's node.
    """
    if not ahead:
        return Judgement(check="clocks", line="one node")
    clocks = {first: 0.0, **ahead}
    usual = statistics.median_low(clocks.values())
    off = {node: seconds - usual for node, seconds in clocks.items() if abs(seconds - usual) > SUSPICIOUS}
    num_right = sum(abs(seconds - usual) <= TOO_MUCH for seconds in clocks.values())
    findings: list[Finding] = []
    if 2 * num_right > len(clocks):
        for node, seconds in off.items():
            way = "ahead of" if seconds > 0 else "behind"
            message = f"its clock is {abs(seconds):.1f} s {way} that of {others(clocks, list(off))}; have it set by NTP"
            findings.append((fail if abs(seconds) > TOO_MUCH else warn)(message, node))
    else:
        times = ", ".join(f"{node} {seconds:+.1f} s" for node, seconds in ahead.items())
        findings.append(
            fail(f"clocks differ, and which are right can't be told: against {first}'s {times}; have them set by NTP")
        )
    apart = max(clocks.values()) - min(clocks.values())
    return Judgement(check="clocks", line=f"within {_readable(apart)} of each other", findings=findings)


def _readable(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
