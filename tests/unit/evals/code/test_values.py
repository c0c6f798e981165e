from __future__ import annotations

import math
import os
import pickle
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.code import values

ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.complex_numbers(allow_nan=False), st.text(),
    st.binary(), st.builds(bytearray, st.binary()), st.builds(range, st.integers(-9, 9)), st.frozensets(st.integers(), max_size=1),
    st.fractions(), st.decimals(allow_nan=False), st.dates(), st.datetimes(timezones=st.sampled_from([None, UTC])), st.times(),
    st.timedeltas(),
)  # fmt: skip
DATA = st.recursive(
    ATOMS,
    lambda each: st.one_of(
        st.lists(each),
        st.tuples(each, each),
        st.dictionaries(st.text(), each),
        st.builds(deque, st.lists(each), st.one_of(st.none(), st.integers(5, 9))),
        st.builds(OrderedDict, st.dictionaries(st.integers(), each)),
        st.builds(lambda table: defaultdict(list, table), st.dictionaries(st.integers(), each)),
        st.sets(st.one_of(st.fractions(), st.tuples(st.text(), st.integers()))),
    ),
    max_leaves=20,
)


def refuse(*described: Any) -> Any:
    raise TypeError(f"{described} is no data")


def back_and_forth(value: Any) -> Any:
    ((back,), _) = values.decode(values.encode([value], refuse)[0], refuse)
    return back


class Always:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Number(IntEnum):
    ONE = 1


class Colour(str, Enum):  # noqa: UP042 (its str() is another than that of StrEnum)
    RED = "red"


class Rows(list):  # type: ignore[type-arg]
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


Pair = namedtuple("Pair", "x y")


@given(DATA)
def test_data_comes_back_as_it_was(value: Any) -> None:
    back = back_and_forth(value)
    assert back == value
    # A message may order sets otherwise; their members are compared above.
    assert len(repr(back)) == len(repr(value))
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Counter("aab"), Counter(a=2, b=1)),
        (deque([1, 2], 3), deque([1, 2], 3)),
        (Pair(1, [Pair(2, 3)]), (1, [(2, 3)])),
        (Number.ONE, 1),
        (Colour.RED, "red"),
        ({1, Number.ONE}, {1}),
        (Rows([1]), [1]),
        (slice(1, None, 2), slice(1, None, 2)),
        ({"a": 1}.keys(), {"a": 1}.keys()),
        (OrderedDict(a=1).items(), {"a": 1}.items()),
    ],
)
def test_relatives_of_data_types_come_back_as_data(value: Any, plain: Any) -> None:
    back = back_and_forth(value)
    assert back == plain
    assert plain == back
    assert type(back) is type(plain)
    assert repr(back) == repr(plain)


def test_parts_of_values() -> None:
    assert list(back_and_forth({"a": 1, "b": 2}.values())) == [1, 2]
    assert back_and_forth(defaultdict(int))["new"] == 0
    assert back_and_forth(defaultdict(lambda: 7, a=1)).default_factory is None
    assert math.isnan(back_and_forth(float("nan")))
    assert back_and_forth(deque(maxlen=3)).maxlen == 3
    for value in (
        datetime(2024, 2, 29, 1, 2, 3, 4, UTC),
        date(1, 1, 1),
        time(23, 59),
        timedelta(-1, 5),
        Decimal("2.50"),
    ):
        assert repr(str(back_and_forth(value))) == repr(str(value))


def test_identity_and_circles() -> None:
    shared: list[Any] = []
    shared.append((shared, {"again": shared}))
    first, second = back_and_forth([shared, shared])
    assert first is second
    assert first[0][0] is first
    assert first[0][1]["again"] is first
    deep: Any = ()
    for _ in range(5000):
        deep = [(deep,)]
    back = back_and_forth(deep)
    for _ in range(5000):
        ((back,),) = back
    assert back == ()


def answered(value: Any, change: Callable[[Any], Any]) -> Any:
    """What `change` returns on the other side, `value` being changed as it was there."""
    question, mine = values.encode([value], refuse)
    ((theirs,), objects) = values.decode(question, refuse)
    reply, _ = values.encode([change(theirs)], refuse, objects)
    ((result,), _) = values.decode(reply, refuse, mine)
    return result


def test_changes_come_back_in_place() -> None:
    rows, table, names, queue, data = [[3, 1], [2]], {"a": [1]}, {"x"}, deque([1, 2], 2), bytearray(b"ab")
    counts, by_name = Counter("ab"), defaultdict(list, a=[1])
    everything = (rows, table, names, queue, data, counts, by_name)
    inner, of_table = rows[0], table["a"]

    def change(given: Any) -> Any:
        rows, table, names, queue, data, counts, by_name = given
        rows[0].sort()
        rows.append(rows.pop(0))
        table["a"].append(2)
        table["new"] = rows[0]
        names.clear()
        queue.append(3)
        data += b"c"
        counts["a"] += 1
        by_name["b"].append(2)
        return [rows, table["a"]]

    result = answered(everything, change)
    assert rows == [[2], [1, 3]]
    assert rows[1] is inner
    assert (table, names, queue, data) == ({"a": [1, 2], "new": [2]}, set(), deque([2, 3], 2), bytearray(b"abc"))
    assert table["a"] is of_table
    assert table["new"] is rows[0]
    assert (counts, by_name) == (Counter(a=2, b=1), {"a": [1], "b": [2]})
    assert result[0] is rows
    assert result[1] is of_table


def test_what_was_taken_out_of_an_argument_is_changed_too() -> None:
    inner: list[int] = []
    rows = [inner]

    def change(rows: Any) -> None:
        rows.pop().append(1)

    answered(rows, change)
    assert (rows, inner) == ([], [1])


def test_what_cannot_change_is_the_same_object() -> None:
    pair, half = (1, [2]), Fraction(1, 2)
    result = answered([pair, half], lambda given: given[::-1])
    assert result[0] is half
    assert result[1] is pair


@pytest.mark.parametrize("value", [Always(), [Always()], {"a": len}, lambda: 0, object(), Ellipsis])
def test_nothing_else_is_sent(value: Any) -> None:
    with pytest.raises(TypeError, match="is no data"):
        values.encode([value], refuse)


def test_what_is_no_data_may_be_described() -> None:
    message, objects = values.encode([[len], len], lambda value: ("function", value.__name__))
    assert objects[0] is len or objects[1] is len
    (([first], second), _) = values.decode(message, lambda kind, option: (kind, option))
    assert first == ("function", "len")
    assert first is second


class Code:
    def __init__(self, call: Any, *args: Any) -> None:
        self.reduced = call, args

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    "value",
    [
        Always(),
        Code(eval, "1"),
        Code(os.getcwd),
        Code(getattr, [], "clear"),
        Decimal("0.1"),
        len,
        int,
        Code(type, 1),
        1j,
    ],
)
def test_no_class_and_no_function_is_read(value: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="is not plain data"):
        values.decode(pickle.dumps(([value], {})), refuse)


@pytest.mark.parametrize(
    ("roots", "nodes"),
    [
        ([[1]], {}),
        ([(0,)], {0: ("eval", None, ["1"])}),
        ([(0,)], {0: ("tuple", None, [(0,)])}),
        ([(0,)], {0: ("keys", None, [1])}),
        ([(0,)], {0: ("defaultdict", "eval", [])}),
        ([(0,)], {0: ("deque", "x", [])}),
        ([(0,)], {0: ("datetime", None, [b"0123456789", 0])}),
        ([(0,)], {0: ("dict", None, [1])}),
        ([(0,)], {0: ("set", None, [(1,)]), 1: ("list", None, [])}),
        ([(5,)], {5: ("list", None, [])}),
        ([{}], {}),
        ([(9,)], {}),
        (1, {}),
    ],
)
def test_other_shapes_are_refused(roots: Any, nodes: Any) -> None:
    with pytest.raises((TypeError, ValueError, KeyError)):
        values.decode(pickle.dumps((roots, nodes)), refuse)


@pytest.mark.parametrize("node", [("tuple", None, [2]), ("dict", None, []), ("set", None, [2]), ("function", "f", [])])
def test_an_argument_only_changes_as_its_kind_can(node: Any) -> None:
    for argument in ([1], (1,), len):
        if type(argument).__name__ != node[0] or node[0] == "tuple":
            with pytest.raises(ValueError, match=f"object 0 is no {node[0]}"):
                values.decode(pickle.dumps(([], {0: node})), refuse, [argument])


def test_arguments_that_have_not_changed_are_left_alone() -> None:
    table = {"a": 1, "b": 2}
    for _ in table:  # would notice
        answered(table, lambda given: None)

    class Strict(list):  # type: ignore[type-arg]
        def __setitem__(self, *args: Any) -> None:
            raise AssertionError("changed")

    answered(Strict([1, (2,), 0.5]), lambda given: None)
    with pytest.raises(AssertionError, match="changed"):
        answered(Strict([1]), lambda given: given.append(2))


def test_a_change_to_an_equal_value_of_another_type_is_a_change() -> None:
    numbers = [1, 0]

    def change(given: Any) -> None:
        given[:] = [True, 0.0]

    answered(numbers, change)
    assert repr(numbers) == "[True, 0.0]"
