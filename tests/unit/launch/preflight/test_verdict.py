from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.preflight.verdict import (
    Judgement,
    fail,
    failing_nodes,
    majority,
    odd_ones,
    others,
    readable,
    slow_ones,
    warn,
)

VALUES = st.dictionaries(st.text(min_size=1, max_size=3), st.sampled_from("abc"), min_size=1, max_size=9)


class TestMajority:
    @given(VALUES)
    def test_no_value_is_had_by_more_nodes(self, values: dict[str, str]) -> None:
        counts = {value: list(values.values()).count(value) for value in "abc"}
        assert counts[majority(values)] == max(counts.values())

    @given(VALUES)
    def test_the_odd_ones_are_those_with_another(self, values: dict[str, str]) -> None:
        usual, odd = odd_ones(values)
        assert {node for node, value in values.items() if value == usual} == set(values) - set(odd)

    def test_on_a_tie_the_first_node_is_right(self) -> None:
        assert odd_ones({"n1": 1, "n2": 2}) == (1, ["n2"])
        assert odd_ones({"n1": 1, "n2": 2, "n3": 3, "n4": 2, "n5": 3}) == (2, ["n1", "n3", "n5"])

    def test_the_others_are_named_or_counted(self) -> None:
        assert others({"n1": 1, "n2": 2}, ["n2"]) == "n1"
        assert others({"n1": 1, "n2": 2, "n3": 1}, ["n2"]) == "the other 2 nodes"


class TestSlowOnes:
    @given(st.dictionaries(st.text(max_size=3), st.floats(1.0, 1.5), max_size=9))
    def test_chance_is_nothing(self, figures: dict[str, float]) -> None:
        assert slow_ones(figures, "sums at", "GB/s") == []

    @pytest.mark.parametrize(("figure", "level"), [(6.1, None), (5.9, "warn"), (2.6, "warn"), (2.4, "fail")])
    def test_figures_below_the_median(self, figure: float, level: str | None) -> None:
        findings = slow_ones({"n1": 10, "n2": figure, "n3": 10}, "sums at", "GB/s")
        assert [(f.level, f.node) for f in findings] == ([] if level is None else [(level, "n2")])

    def test_the_message_has_both_figures(self) -> None:
        assert slow_ones({"n1": 10, "n2": 3, "n3": 11}, "sums at", "GB/s", is_shared=True) == []
        (finding,) = slow_ones({"n1": 10, "n2": 2, "n3": 11}, "sums at", "GB/s", is_shared=True)
        assert (finding.level, str(finding)) == ("warn", "n2: sums at 2 GB/s, the median of all is 10 GB/s")


def test_only_failures_with_a_node_count_against_it() -> None:
    findings = [fail("x", "n3"), warn("y", "n2"), fail("z"), fail("v", "n1"), fail("w", "n3")]
    assert failing_nodes([Judgement(check="a", line="", findings=findings[:2]),
                          Judgement(check="b", line="", findings=findings[2:])]) == ["n1", "n3"]  # fmt: skip


@pytest.mark.parametrize(("size", "text"), [(512, "0.5 kB"), (2.5e6, "2.5 MB"), (8e10, "80.0 GB"), (3e12, "3.0 TB")])
def test_bytes_for_people(size: float, text: str) -> None:
    assert readable(size) == text
