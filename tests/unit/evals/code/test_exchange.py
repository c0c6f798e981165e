from __future__ import annotations

import math
import os
import pickle
from collections import Counter, OrderedDict, defaultdict, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.code import exchange

ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.complex_numbers(allow_nan=False), st.text(),
    st.binary(), st.builds(bytearray, st.binary()), st.builds(range, st.integers(-9, 9)), st.frozensets(st.integers(), max_size=1),
)  # fmt: skip
DATA = st.recursive(
    ATOMS,
    lambda each: st.one_of(st.lists(each), st.tuples(each, each), st.dictionaries(st.text(), each)),
    max_leaves=20,
)


class Always:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Number(IntEnum):
    ONE = 1


Pair = namedtuple("Pair", "x y")


@given(DATA)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    back = exchange.load(exchange.dump(value))
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(lambda: 0, a=1), {"a": 1}),
        (Pair(1, [Pair(2, 3)]), (1, [(2, 3)])),
        (Number.ONE, 1),
        (Fraction(1, 2), 0.5),
        (Fraction(4, 2), 2),
        (Decimal("2.50"), 2.5),
        (Decimal(10) ** 30, 10**30),
        ({1, Number.ONE}, {1}),
    ],
)
def test_relatives_of_data_types_come_back_as_data(value: Any, plain: Any) -> None:
    back = exchange.load(exchange.dump(value))
    assert back == plain
    assert type(back) is type(plain)


def test_nan_stays_nan() -> None:
    assert math.isnan(exchange.load(exchange.dump(float("nan"))))


class Code:
    def __init__(self, call: Any, *args: Any) -> None:
        self.reduced = call, args

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    "value",
    [Always(), Code(eval, "1"), Code(os.getcwd), Code(getattr, [], "clear"), Decimal("0.1"), len, Code(type, 1)],
)
def test_nothing_else_is_read(value: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="is not plain data"):
        exchange.load(pickle.dumps(value))


def test_the_data_types_cannot_be_changed() -> None:
    # BUILD with a state of attributes calls setattr, also on a class.
    for name in ("list", "int", "dict"):
        attack = b"\x80\x04cbuiltins\n" + name.encode() + b"\nN}\x8c\x06__eq__K\x01s\x86b."
        with pytest.raises(TypeError):
            exchange.load(attack)
    assert [1] != [2]


def test_messages_on_a_pipe() -> None:
    read, write = os.pipe()
    exchange.send(write, b"one")
    exchange.send(write, b"")
    exchange.send(write, b"12345")
    os.write(write, b"\x05\0\0\0\0\0\0\0cut")
    os.close(write)
    assert exchange.receive(read) == b"one"
    assert exchange.receive(read) == b""
    with pytest.raises(ValueError, match="a message of 5 bytes, longer than 4"):
        exchange.receive(read, longest=4)
    os.close(read)


@pytest.mark.parametrize("data", [b"", b"\x05\0", b"\x05\0\0\0\0\0\0\0cut"])
def test_the_end_of_messages(data: bytes) -> None:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    assert exchange.receive(read) is None
    os.close(read)
