"""The page of settings is made of the configuration's docstrings, and is the one in docs/."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """tools/settings_page.py."""
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "tools" / "settings_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_configuration(made: ModuleType) -> None:
    assert made.PAGE.read_text() == made.page(), "write it anew: python tools/settings_page.py"


def test_every_setting_is_on_it(made: ModuleType) -> None:
    page = made.page()
    for name in ("run.dir", "adapter.kind", "adapter.rank", "data.sources.NAME.kind", "eval.tasks.NAME.path"):
        assert page.count(f"- **`{name}`** · ") == 1
    assert "- **`train.tokens`** · whole number · not set  \n  Length of the run in input tokens" in page
    assert '- **`optim.kind`** · `"adamw"`, `"lionw"`, `"muon"` · `"adamw"`  \n' in page
    assert "- **`data.tokenizer`** · path · must be given  \n" in page


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int | None, "whole number"), (bool, "true or false"), (tuple[str, ...], "list of texts"),
        (dict[str, float], "table of numbers"), (Literal["a", "b"], '`"a"`, `"b"`'), (Path, "path"),
    ],
)  # fmt: skip
def test_types(made: ModuleType, hint: Any, text: str) -> None:
    assert made.type_of(hint) == text


@dataclasses.dataclass
class Parent:
    """What a field has here it has below, too."""

    first: int = 1
    """Of the
    parent."""


@dataclasses.dataclass
class Child(Parent):
    """Its own."""

    second: tuple[str, ...] = ("a",)
    """Of the child."""
    third: bool = True
    """Also."""


def test_docstrings_are_those_below_the_fields(made: ModuleType) -> None:
    assert made.docstrings(Child) == {"first": "Of the parent.", "second": "Of the child.", "third": "Also."}
    assert list(made.lines(Child, "x")) == [
        '- **`x.second`** · list of texts · `["a"]`  ', "  Of the child.",
        "- **`x.third`** · true or false · `true`  ", "  Also.",
        "- **`x.first`** · whole number · `1`  ", "  Of the parent.",
    ]  # fmt: skip


def test_signs_of_markdown_stand_for_themselves(made: ModuleType) -> None:
    assert made.as_markdown("all *.bin of [eval], `*.py` <but> a_b") == "all \\*.bin of \\[eval], `*.py` \\<but> a_b"
