from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_pipeline.commands.rendering import Part, render_colours, render_plain, row_parts
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import Tokenizer

IGNORED = -100


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_path)


def parts_of(
    tokenizer: Tokenizer, inputs: Sequence[int], labels: Sequence[int], documents: Sequence[Any]
) -> list[Part]:
    row: Any = SimpleNamespace(
        input_ids=np.array(inputs, dtype=np.int64), labels=np.array(labels, dtype=np.int64), documents=tuple(documents)
    )
    return list(
        row_parts(row, tokenizer, ["prose", "code"], lambda source, number: f"{source}.jsonl, line {number + 1}")
    )


def document(start: int, source: int, number: int = 0, epoch: int = 0, offset: int = 0) -> SimpleNamespace:
    return SimpleNamespace(start=start, source=source, number=number, epoch=epoch, offset=offset)


def test_documents_targets_and_what_goes_on(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode("the dog"), tokenizer.encode("the fox é")
    inputs = [1, *first, 2, *second[:-1]]
    labels = [*first, 2, IGNORED, *second[1:]]
    a, b = len(first) + 2, len(second) - 1
    parts = parts_of(tokenizer, inputs, labels, [document(0, 0, 6), document(a, 1, 16, 2, 40)])
    lines = render_plain(parts).split("\n")
    assert lines[:3] == [
        f"── prose 6, epoch 0, inputs 0 to {a - 1}, {a - 1} targets ──",
        "   0.jsonl, line 7",
        "⟦<BOS>⟧the dog<EOS>",
    ]
    assert lines[3:5] == [
        f"── code 16, epoch 2, inputs {a} to {a + b - 1}, from its token 40 on, {b} targets ──",
        "   1.jsonl, line 17",
    ]
    assert lines[5].startswith("⟦t")
    assert lines[5].index("⟧") < 5
    assert lines[5].endswith(f" ▸{tokenizer.decode(second[-1:])}")


@pytest.mark.parametrize(("text", "shown"), [("dog\n", "↵"), ("dog\t", "⇥"), ("the dog", " d")])
def test_the_next_token_is_visible(tokenizer: Tokenizer, text: str, shown: str) -> None:
    ids = tokenizer.encode(text)
    (part,) = parts_of(tokenizer, ids[:-1], ids[1:], [document(0, 0)])
    assert part.next_token.startswith(shown)


def test_a_response_is_plain_and_its_prompt_is_not(tokenizer: Tokenizer) -> None:
    prompt, response = tokenizer.encode("the lazy dog"), tokenizer.encode(" sleeps on")
    inputs = [1, *prompt, *response, 2, 2, 2]
    labels = [*[IGNORED] * len(prompt), *response, 2, *[IGNORED] * 3]
    end = len(inputs) - 2
    plain = render_plain(parts_of(tokenizer, inputs, labels, [document(0, 0), document(end, -1)]), ids=True).split("\n")
    # The space between the parts belongs to the response: nothing is lost where the text is divided.
    assert plain[2] == "⟦<BOS>the lazy dog⟧ sleeps on<EOS>"
    assert plain[3].split() == [str(i) for i in inputs[:end]]
    assert plain[4:] == [f"── padding, inputs {end} to {end + 1} ──", "  2 2"]


def test_a_character_divided_between_runs(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("dog 😀")
    assert len(ids) > 5  # the emoji is four tokens of one byte
    labels = [*ids[1:-2], IGNORED, ids[-1], IGNORED]
    (part,) = parts_of(tokenizer, ids, labels, [document(0, 0)])
    assert [run.is_target for run in part.runs] == [False, True, False, True]
    assert "".join(run.text for run in part.runs).startswith("dog")


def test_control_characters_cannot_reach_the_terminal(tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("a\x1b[31mred\x07\tb\nc\x9b")]
    (part,) = parts_of(tokenizer, ids, [*ids[1:], IGNORED], [document(0, 0)])
    text = render_plain([part])
    assert "a␛[31mred␇\tb\nc�" in text
    assert "\x1b" not in text


def test_colours_hold_the_same_text_without_marks(tokenizer: Tokenizer) -> None:
    ids = [1, *tokenizer.encode("[bold]the dog")]
    parts = parts_of(tokenizer, ids[:-1], [IGNORED, *ids[2:]], [document(0, 0)])
    text = render_colours(parts, ids=True)
    plain = render_plain(parts, ids=True)
    assert text.plain == plain.replace("⟦", "").replace("⟧", "")
    dim = [text.plain[span.start : span.end] for span in text.spans if span.style == "bright_black"]
    assert dim[0].startswith("<BOS>")
    assert "".join(dim) == "".join(run.text for run in parts[0].runs if not run.is_target)
