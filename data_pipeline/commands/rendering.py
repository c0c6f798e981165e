"""A row of token ids as text that a person can check: its documents, and which of its tokens are learned.

The label of an input is the token after it. What is shown is the tokens, each marked by whether it is a label: what is
plain is predicted, what is dim or in ⟦ ⟧ is only read. A document that goes on in the next row has one more label, its
next token, which is shown after ▸.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from data_pipeline.packing.rows import IGNORED

if TYPE_CHECKING:
    from rich.text import Text

    from data_pipeline.encoding.tokenizer import Tokenizer
    from data_pipeline.stream.token_stream import Row

PADDING = -1
"""The source of padding in a row's documents."""

# A document must not be able to move the cursor or colour the terminal: control characters are shown as pictures.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_PICTURES |= {code: 0xFFFD for code in range(0x80, 0xA0)}


class Run(NamedTuple):
    """Neighbouring tokens of a document that are shown alike.

    Attributes:
        text: what they say, BOS and EOS by name.
        is_target: whether they are labels of this row.
    """

    text: str
    is_target: bool


class Part(NamedTuple):
    """What a row holds of one document.

    Attributes:
        heading: which document it is and how many of its tokens are here.
        where: the document's file and line; "" for padding.
        runs: its tokens as text, none for padding.
        next_token: the label of the last input, where the document goes on in the next row, else "".
        ids: its input ids.
    """

    heading: str
    where: str
    runs: list[Run]
    next_token: str
    ids: list[int]


def row_parts(
    row: Row, tokenizer: Tokenizer, source_names: Sequence[str], where: Callable[[int, int], str]
) -> Iterator[Part]:
    """Yield the documents of a row in order.

    Args:
        row: what to show.
        tokenizer: turns ids into text.
        source_names: names of the sources, by the numbers in the row's documents.
        where: (source, document number) -> file and line of the document.
    """
    starts = [document.start for document in row.documents]
    for document, start, stop in zip(row.documents, starts, [*starts[1:], len(row.input_ids)], strict=True):
        ids, labels = row.input_ids[start:stop].tolist(), row.labels[start:stop]
        place = f"inputs {start} to {stop - 1}"
        if document.source == PADDING:
            yield Part(f"padding, {place}", "", [], "", ids)
            continue
        targets = int((labels != IGNORED).sum())
        of_document = f", from its token {document.offset} on" if document.offset else ""
        heading = (
            f"{source_names[document.source]} {document.number}, epoch {document.epoch}, {place}{of_document}, "
            f"{_count(targets, 'target')}"
        )
        is_target = [False, *(labels[:-1] != IGNORED).tolist()]
        next_token = _visible(int(labels[-1]), tokenizer) if labels[-1] != IGNORED else ""
        yield Part(
            heading, where(document.source, document.number), list(_runs(ids, is_target, tokenizer)), next_token, ids
        )


def render_plain(parts: Sequence[Part], *, ids: bool = False) -> str:
    """The parts as text for a file or a pipe, with what is no target in ⟦ ⟧."""
    lines = []
    for part in parts:
        lines += [f"── {part.heading} ──", *([f"   {part.where}"] if part.where else [])]
        text = "".join(run.text if run.is_target else f"⟦{run.text}⟧" for run in part.runs)
        if text:
            lines.append(text + (f" ▸{part.next_token}" if part.next_token else ""))
        if ids:
            lines.append(_id_lines(part.ids))
    return "\n".join(lines)


def render_colours(parts: Sequence[Part], *, ids: bool = False) -> Text:
    """The parts as text for a terminal, with what is no target dim."""
    from rich.text import Text

    text = Text()
    for part in parts:
        text.append(f"── {part.heading} ──\n", style="bold cyan")
        text.append(f"   {part.where}\n" if part.where else "", style="cyan")
        for run in part.runs:
            text.append(run.text, style="" if run.is_target else "bright_black")
        if part.next_token:
            text.append(" ▸", style="bold cyan")
            text.append(part.next_token)
        if part.runs:
            text.append("\n")
        if ids:
            text.append(_id_lines(part.ids) + "\n", style="cyan")
    text.rstrip()
    return text


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _visible(token: int, tokenizer: Tokenizer) -> str:
    """A single token, also where it is a space or the end of a line."""
    (run,) = _runs([token], [True], tokenizer)
    if run.text.strip():
        return run.text
    return run.text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or f"token {token}"


def _id_lines(ids: Sequence[int]) -> str:
    return textwrap.fill(" ".join(map(str, ids)), 78, initial_indent="  ", subsequent_indent="  ")


def _runs(ids: Sequence[int], is_target: Sequence[bool], tokenizer: Tokenizer) -> Iterator[Run]:
    """Group neighbouring tokens that are shown alike."""
    texts = _texts(ids, is_target, tokenizer)
    for target, group in groupby(texts, key=lambda run: run.is_target):
        yield Run("".join(run.text for run in group), target)


def _texts(ids: Sequence[int], is_target: Sequence[bool], tokenizer: Tokenizer) -> Iterator[Run]:
    """The text of ids is what they add to the text before them, so that the space between two runs is not lost."""
    names = {tokenizer.eos_id: "<EOS>", tokenizer.bos_id: "<BOS>"}
    since = 0  # where the stretch of ordinary tokens began, which is decoded as one
    for (name, target), group in groupby(range(len(ids)), key=lambda at: (names.get(ids[at]), is_target[at])):
        places = list(group)
        start, stop = places[0], places[-1] + 1
        if name is not None:
            since = stop
            yield Run(name * len(places), target)
            continue
        before, whole = tokenizer.decode(ids[since:start]) if since < start else "", tokenizer.decode(ids[since:stop])
        # A character of several tokens may be divided here: then the text before it was another.
        text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids[start:stop])
        yield Run(text.translate(_PICTURES), target)
