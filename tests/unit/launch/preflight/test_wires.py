from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.preflight import wires
from training.ranks.fabric import rounds

NODES = {"n1": [0, 1], "n2": [2, 3], "n3": [4, 5], "n4": [6, 7]}
GPU = {"device": "cuda", "flops": 7e14}


def measured(**change: Any) -> dict[int, dict[str, Any]]:
    """What all ranks say when all is well, with the pairs of a tournament."""
    return {
        rank: {"device": "cpu", "inside": 4e9, "pairs": {str(other): 1e9 for other in range(4) if other != rank // 2},
               "all": 5e8, "flops": None, "wrong": [], "stopped_at": None, "error": ""} | change
        for rank in range(8)
    }  # fmt: skip


def change(said: dict[int, dict[str, Any]], ranks: list[int], **values: Any) -> dict[int, dict[str, Any]]:
    for rank in ranks:
        said[rank] = said[rank] | values
    return said


def texts(said: dict[int, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(f.level, str(f)) for f in wires.judge(said, NODES).findings]


class TestRounds:
    @given(st.integers(1, 40))
    def test_every_node_meets_every_other_once(self, count: int) -> None:
        found = rounds(count)
        assert len(found) == (count - 1 + count % 2 if count > 1 else 1 if count else 0)
        assert sorted(tuple(sorted(pair)) for pairs in found for pair in pairs) == [
            (a, b) for a in range(count) for b in range(a + 1, count)]  # fmt: skip
        for pairs in found:
            nodes = [node for pair in pairs for node in pair]
            assert len(nodes) == len(set(nodes))


class TestWell:
    def test_the_line(self) -> None:
        judged = wires.judge(measured(), NODES)
        assert judged.findings == []
        assert judged.line == "4 GB/s inside nodes, 2 GB/s between two nodes, 0.5 GB/s over all ranks; all sums exact"

    def test_with_gpus(self) -> None:
        line = wires.judge(measured(**GPU), NODES).line
        assert line.endswith("0.5 GB/s over all ranks, 700 TFLOP/s per GPU in bf16; all sums exact")

    def test_one_rank(self) -> None:
        alone = {0: measured()[0] | {"inside": None, "pairs": {}, "all": None}}
        assert wires.judge(alone, {"n1": [0]}).line == "nothing to measure: one rank"

    def test_not_tried(self) -> None:
        assert wires.judge({}, NODES, "rank 3 is missing").line == "not tried: rank 3 is missing"


class TestSlow:
    def test_a_node_with_a_slow_cable(self) -> None:
        said = measured(**GPU)
        for rank in range(8):
            said[rank]["pairs"] = {
                other: 2e8 if "1" in (other, str(rank // 2)) else 1e9 for other in said[rank]["pairs"]
            }
        assert texts(said) == [("fail", "n2: sums with other nodes at 0.4 GB/s, the median of all is 2 GB/s")]

    def test_on_cpus_it_is_a_warning(self) -> None:
        said = change(measured(), [2, 3], inside=1e8)
        assert texts(said) == [("warn", "n2: sums inside the node at 0.1 GB/s, the median of all is 4 GB/s")]

    def test_of_a_single_pair_no_end_is_the_slow_one(self) -> None:
        two = {
            rank: said | {"pairs": {"1": 1e9} if rank < 2 else {"0": 1e9}}
            for rank, said in measured().items()
            if rank < 4
        }
        assert wires.judge(two, {"n1": [0, 1], "n2": [2, 3]}).findings == []

    def test_a_slow_gpu(self) -> None:
        said = change(measured(**GPU), [5], flops=4e14)
        assert texts(said) == [("warn", "n3: the slowest GPU computes 400 TFLOP/s, the median of all is 700 TFLOP/s")]

    def test_a_pair_is_as_fast_as_its_ranks_together(self) -> None:
        home = {rank: node for node, ranks in NODES.items() for rank in ranks}
        assert wires.pair_rates(measured(), home, list(NODES))["n1", "n2"] == 2e9


class TestWrong:
    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("inside", "n2: a sum over its ranks is wrong"),
            ("matmul", "n2: a GPU computes a wrong matrix product; have it replaced"),
        ],
    )
    def test_of_a_node_alone(self, word: str, message: str) -> None:
        assert texts(change(measured(), [2], wrong=[word, "all"])) == [("fail", message)]

    def test_of_one_pair(self) -> None:
        said = change(change(measured(), [0], wrong=["pair 1"]), [2], wrong=["pair 0"])
        (finding,) = wires.judge(said, NODES).findings
        assert (finding.node, finding.message) == (None, "the sum of n1 and n2 is wrong")

    def test_of_all_pairs_of_one_node(self) -> None:
        said = change(measured(), [4], wrong=["pair 0", "pair 1", "pair 3"])
        findings = wires.judge(said, NODES).findings
        assert [f.node for f in findings] == 3 * ["n3"]
        assert findings[0].message == "the sum of n1 and n3 is wrong"

    def test_of_all_ranks_only(self) -> None:
        said = measured(wrong=["all"])
        assert texts(said) == [("fail", "the sum over all ranks is wrong, and those of pairs of nodes are right")]


class TestStopped:
    def test_a_rank_without_a_gpu_is_why_the_others_can_not_join(self) -> None:
        said = measured(stopped_at="join", error="timeout")
        change(said, [3], stopped_at="gpu", error="rank 3 is number 1 and is shown 1")
        assert texts(said) == [("fail", "n2: no GPU for a rank: rank 3 is number 1 and is shown 1")]

    def test_nobody_can_join(self) -> None:
        (finding,) = wires.judge(measured(stopped_at="join", error="Connection refused"), NODES).findings
        assert finding.node is None
        assert str(finding).startswith("ranks could not join a process group: Connection refused; may nodes talk")

    def test_one_node_can_not_join(self) -> None:
        assert texts(change(measured(), [6, 7], stopped_at="join", error="x")) == [
            ("fail", "n4: ranks could not join a process group: x")]  # fmt: skip

    def test_who_waits_for_a_waiting_one_is_not_to_blame(self) -> None:
        said = change(measured(), [0], stopped_at="pair 1", error="Timed out")
        change(said, [2], stopped_at="pair 0", error="Timed out")
        change(said, [4], stopped_at="pair 0", error="Timed out")
        change(said, [6], stopped_at="all", error="Timed out")
        assert texts(said) == [("fail", "the sum of n1 and n2 came to no end: Timed out")]

    def test_only_the_sum_over_all(self) -> None:
        assert texts(measured(stopped_at="all", error="Timed out")) == [
            ("fail", "the sum over all ranks came to no end, and those of pairs of nodes did: Timed out")]  # fmt: skip

    def test_the_line_does_not_call_them_exact(self) -> None:
        said = change(measured(), [6], stopped_at="all", error="Timed out", all=None)
        assert wires.judge(said, NODES).line.endswith("over all ranks")
        nothing = measured(stopped_at="join", error="x", inside=None, pairs={}, all=None)
        assert wires.judge(nothing, NODES).line == "no sum came to an end"

    def test_nothing_is_said_of_those_who_wait_for_a_silent_rank(self) -> None:
        said = measured(stopped_at="all", error="Timed out")
        del said[5]
        assert wires.judge(said, NODES).findings == []
