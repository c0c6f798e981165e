from __future__ import annotations

import json

from launch.preflight.report import Report
from launch.preflight.verdict import Judgement, fail, warn


def report(*judgements: Judgement, nodes: int = 2) -> Report:
    return Report(
        judgements=judgements, nodes=[f"n{number + 1}" for number in range(nodes)], ranks=4 * nodes, seconds=3.21
    )


WELL = Judgement(check="clocks", line="within 0.2 ms of n1's")


def test_a_healthy_one_has_a_line_per_check() -> None:
    healthy = report(WELL, Judgement(check="storage", line="/run"))
    assert healthy.text().splitlines() == [
        "preflight: healthy; 2 node(s) (n1, n2), 8 rank(s), 3.2 s",
        "  clocks    within 0.2 ms of n1's",
        "  storage   /run",
    ]
    assert (healthy.code, healthy.failing) == (0, [])


def test_a_bad_one_begins_with_what_is_wrong() -> None:
    findings = [warn("slow", "n1"), fail("broken", "n2")]
    bad = report(WELL, Judgement(check="wires", line="1 GB/s", findings=findings))
    assert bad.text().splitlines()[:5] == [
        "preflight: n2 fails; 2 node(s) (n1, n2), 8 rank(s), 3.2 s",
        "  FAIL  n2: broken",
        "  warn  n1: slow",
        "",
        "  clocks    within 0.2 ms of n1's",
    ]
    assert (bad.code, bad.failing) == (1, ["n2"])


def test_heads() -> None:
    def head(*findings: object, nodes: int = 2) -> str:
        return report(Judgement(check="x", line="", findings=findings), nodes=nodes).text().splitlines()[0]

    assert head(warn("a"), warn("b")).startswith("preflight: healthy, 2 warning(s); ")
    assert head(fail("a")).startswith("preflight: something fails; ")
    assert head(fail("a", "n1"), fail("b", "n2")).startswith("preflight: n1, n2 fail; ")
    assert head(nodes=9).startswith("preflight: healthy; 9 node(s) (n1, n2, n3, n4, n5, n6, n7, n8, ...), 36 rank(s)")


def test_for_programs() -> None:
    content = report(Judgement(check="x", line="y", findings=[fail("broken", "n2")])).json()
    assert json.loads(json.dumps(content)) == {
        "schema": 1, "code": 1, "failing": ["n2"], "nodes": ["n1", "n2"], "ranks": 8, "seconds": 3.21, "parts": {},
        "checks": [{"check": "x", "line": "y", "findings": [{"level": "fail", "message": "broken", "node": "n2"}]}],
    }  # fmt: skip
