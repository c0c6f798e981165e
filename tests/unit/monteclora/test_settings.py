"""Types of settings, against values that are made for each type."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monteclora.settings import type_problems


@dataclass
class Settings:
    whole: int = 1
    number: float = 1.0
    switch: bool = False
    text: str = ""
    choice: Literal["one", "two"] = "one"
    perhaps: float | None = None
    where: Path | None = None
    patterns: tuple[str, ...] = ()
    numbers: dict[str, int] = field(default_factory=dict)


@dataclass
class More(Settings):
    more: int = 1

    @property
    def derived(self) -> int:
        return 1


WHOLE, NUMBERS, SWITCHES, TEXTS = st.integers(), st.integers() | st.floats(), st.booleans(), st.text(max_size=3)
TABLES = st.dictionaries(TEXTS, WHOLE, max_size=2)
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "whole": WHOLE,
    "number": NUMBERS,
    "switch": SWITCHES,
    "text": TEXTS,
    "choice": TEXTS,  # which of them is a matter of range
    "perhaps": NUMBERS | st.none(),
    "where": st.just(Path("a")) | st.none(),
    "patterns": st.lists(TEXTS, max_size=2).map(tuple),
    "numbers": TABLES,
}
NESTED = st.lists(WHOLE, min_size=1, max_size=2)
WRONG: dict[str, st.SearchStrategy[Any]] = {
    "whole": st.floats() | SWITCHES | TEXTS | st.none() | NESTED,
    "number": SWITCHES | TEXTS | st.none() | NESTED,
    "switch": NUMBERS | TEXTS | st.none(),
    "text": NUMBERS | SWITCHES | st.none() | st.binary(),
    "choice": NUMBERS | SWITCHES | st.none(),
    "perhaps": SWITCHES | TEXTS | NESTED,
    "where": TEXTS | NUMBERS,
    "patterns": TEXTS | st.none() | NESTED | NESTED.map(tuple) | st.sets(TEXTS),
    "numbers": st.dictionaries(TEXTS, TEXTS | SWITCHES | st.floats(), min_size=1) | st.none() | NESTED
    | st.dictionaries(WHOLE, WHOLE, min_size=1),
}  # fmt: skip


@given(values=st.fixed_dictionaries(RIGHT))
def test_values_of_their_types_are_no_problem(values: dict[str, Any]) -> None:
    assert list(type_problems(More(**values))) == []


@pytest.mark.parametrize("name", WRONG)
@given(data=st.data())
def test_a_value_of_another_type_is_one_problem(name: str, data: st.DataObject) -> None:
    value = data.draw(WRONG[name])
    [(found, message)] = type_problems(More(**{name: value}))
    assert found == name
    assert message.startswith(f"is {value!r}; give ")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("whole", "a whole number"),
        ("number", "a number"),
        ("switch", "True or False"),
        ("text", "a text"),
        ("choice", "`one` or `two`"),
        ("perhaps", "a number or None"),
        ("where", "Path or None"),
        ("patterns", "a list, each entry a text"),
        ("numbers", "a table of patterns, each with a whole number"),
    ],
)
def test_what_is_wanted_is_said_in_words(name: str, wanted: str) -> None:
    values: dict[str, Any] = {name: 1j}
    assert list(type_problems(Settings(**values))) == [(name, f"is 1j; give {wanted}")]


def test_every_problem_is_found() -> None:
    found = type_problems(More(whole="1", patterns="q", more=None))  # type: ignore[arg-type]
    assert sorted(name for name, _ in found) == ["more", "patterns", "whole"]
