from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.preflight import roster
from training.world import expand_nodes

SLURM = {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08],big1", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}


def there(*places: tuple[str, int]) -> dict[int, dict[str, object]]:
    return {rank: {"node": node, "local_rank": local_rank} for rank, (node, local_rank) in enumerate(places)}


class TestNodes:
    @given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    def test_ranks_are_with_their_node(self, sizes: list[int]) -> None:
        places = [(f"n{node}", local) for node, size in enumerate(sizes) for local in range(size)]
        assert list(roster.nodes_of(there(*places)).values()) == [node for node, _ in places]

    def test_machines_of_one_name_are_told_apart(self) -> None:
        found = roster.nodes_of(there(("box", 0), ("box", 1), ("box", 0), ("box", 1), ("other", 0)))
        assert found == {0: "box (from rank 0)", 1: "box (from rank 0)", 2: "box (from rank 2)", 3: "box (from rank 2)",
                         4: "other"}  # fmt: skip
        assert roster.file_name(found[2]) == "box__from_rank_2_"

    def test_a_node_without_its_first_rank(self) -> None:
        assert roster.nodes_of({0: {"node": "a", "local_rank": 0}, 3: {"node": "b", "local_rank": 1}}) == {
            0: "a",
            3: "b",
        }

    def test_the_schedulers_name_comes_first(self) -> None:
        assert roster.own_node({"SLURMD_NODENAME": "n7"}) == "n7"
        assert roster.own_node({}) != ""


class TestMissing:
    def test_slurm_says_who_is_to_come(self) -> None:
        assert roster.expected(SLURM) == ["gpu07", "gpu07", "gpu08", "gpu08", "big1"]

    @pytest.mark.parametrize("change", [{"SLURM_STEP_ID": None}, {"SLURM_STEP_TASKS_PER_NODE": "x"},
                                        {"SLURM_STEP_TASKS_PER_NODE": "2"}, {"SLURM_STEP_NODELIST": "gpu[a-b]"}])  # fmt: skip
    def test_without_slurm_nobody_does(self, change: dict[str, str | None]) -> None:
        environment = {key: value for key, value in (SLURM | change).items() if value is not None}
        assert roster.expected(environment) is None

    def test_the_node_of_a_missing_rank(self) -> None:
        planned = ["a", "a", "b", "b"]
        assert roster.node_of_missing(2, {0: "a", 1: "a"}, planned, 2) == "b"
        # Ranks were dealt out otherwise: the plan is wrong.
        assert roster.node_of_missing(3, {0: "a", 1: "b", 2: "a"}, planned, 2) is None
        # Without a plan, the other ranks of its node tell.
        assert roster.node_of_missing(3, {0: "a", 1: "a", 2: "b"}, None, 2) == "b"
        assert roster.node_of_missing(3, {0: "a", 1: "a"}, None, 2) is None

    @given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), min_size=1, max_size=4), st.integers(2, 4))
    def test_lists_of_nodes_expand(self, ranges: list[tuple[int, int]], width: int) -> None:
        text = ",".join(
            f"{first:0{width}}-{first + more:0{width}}" if more else f"{first:0{width}}" for first, more in ranges
        )
        wanted = [f"gpu{number:0{width}}" for first, more in ranges for number in range(first, first + more + 1)]
        assert expand_nodes(f"gpu[{text}],big1") == [*wanted, "big1"]


class TestVerdict:
    NODES = {0: "n1", 1: "n1", 2: "n2", 3: "n2"}  # noqa: RUF012

    def test_all_there(self) -> None:
        judged = roster.judge(4, self.NODES, {}, {}, {}, 20)
        assert (judged.line, judged.findings) == ("all 4 reported, of 2 node(s)", [])

    def test_who_did_not_come_is_named_with_the_node(self) -> None:
        judged = roster.judge(7, self.NODES, {4: "n3", 5: "n3", 6: None}, {}, {}, 20)
        assert [(f.node, f.message) for f in judged.findings] == [
            ("n3", "ranks 4 to 5: no report within 20 s"), (None, "rank 6: no report within 20 s")]  # fmt: skip
        assert judged.line == "4 of 7 reported, of 2 node(s)"

    def test_where_only_the_first_node_came_none_is_named(self) -> None:
        judged = roster.judge(6, {0: "n1"}, {1: "n1", 2: "n2", 3: "n2", 4: None, 5: None}, {}, {}, 20)
        only = "no report within 20 s; nobody came but n1 itself, which may be what the others can't reach"
        assert [(f.level, f.node, f.message) for f in judged.findings] == [
            ("fail", "n1", "rank 1: no report within 20 s"), ("fail", None, f"n2: ranks 2 to 3: {only}"),
            ("fail", None, f"ranks 4 to 5: {only}")]  # fmt: skip

    def test_who_went_silent_is_named_with_what_it_did(self) -> None:
        judged = roster.judge(4, self.NODES, {}, {2: "a sum with n1", 3: ""}, {}, 20)
        assert [str(f) for f in judged.findings] == [
            "n2: rank 2: no answer within 20 s; last busy with: a sum with n1",
            "n2: rank 3: no answer within 20 s; last busy with: its start",
        ]

    def test_what_a_node_can_not_look_at(self) -> None:
        judged = roster.judge(4, self.NODES, {}, {}, {0: {}, 2: {"memory": "Permission denied"}}, 20)
        assert [str(f) for f in judged.findings] == ["n2: its memory can't be looked at: Permission denied"]

    def test_ranks_that_are_no_range(self) -> None:
        judged = roster.judge(5, {0: "n1", 2: "n1", 4: "n3"}, {1: "n2", 3: "n2"}, {}, {}, 5)
        assert str(judged.findings[0]) == "n2: ranks 1, 3: no report within 5 s"
