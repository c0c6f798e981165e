"""The front against brute force."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from evals.arithmetic.pareto import Point, front


def points(*places: tuple[float, float]) -> list[Point]:
    return [Point(run="r", step=i, learned=up, forgotten=right) for i, (up, right) in enumerate(places)]


def is_dominated(point: Point, others: list[Point]) -> bool:
    return any(
        o.learned >= point.learned
        and o.forgotten <= point.forgotten
        and (o.learned, o.forgotten) != (point.learned, point.forgotten)
        for o in others
    )


small = st.integers(-4, 6).map(float)
clouds = st.lists(st.tuples(small, small), max_size=25).map(lambda places: points(*places))


def test_a_front_by_hand() -> None:
    cloud = points((1, 1), (2, 2), (1.5, 3), (3, 2), (0.5, 0.5), (0.4, 0.5))
    assert [p.step for p in front(cloud)] == [4, 0, 3]


def test_equal_points_all_stay_in_their_order() -> None:
    assert [p.step for p in front(points((1, 1), (2, 2), (2, 2), (2, 3), (1, 1)))] == [0, 4, 1, 2]


def test_runs_that_diverged_are_left_out() -> None:
    assert [p.step for p in front(points((math.nan, 0), (1, 1), (5, math.nan), (math.inf, 0), (9, -math.inf)))] == [1]
    assert front([]) == []


@given(clouds)
def test_the_front_is_what_nothing_dominates(cloud: list[Point]) -> None:
    found = front(cloud)
    assert {p.step for p in found} == {p.step for p in cloud if not is_dominated(p, cloud)}
    assert [p.forgotten for p in found] == sorted(p.forgotten for p in found)
    assert front(found) == found


@given(clouds, st.randoms())
def test_the_order_of_the_points_does_not_matter(cloud: list[Point], random: object) -> None:
    shuffled = list(cloud)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert {p.step for p in front(shuffled)} == {p.step for p in front(cloud)}
