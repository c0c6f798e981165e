"""Bits per byte of responses: how many bits the model needs to encode a byte of the response to a prompt. Lower is better.

A prompt and its response become the tokens that training sees of them (data sources of kind "prompt"), and the tokens
that training learns are the scored ones: from the first that the prompt alone would not have, to the end of text where
training puts one. So the score is the training loss on examples that are not trained on, in bits per byte of response.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from evals.config import TaskConfig
from evals.errors import EvalError
from evals.held_out import bits_per_byte
from evals.held_out.json_lines import read_records
from evals.scoring.rows import Encode, Example, Row

METRIC = bits_per_byte.METRIC
HIGHER_IS_BETTER = bits_per_byte.HIGHER_IS_BETTER

# The arithmetic is that of documents, with a response's bits and bytes in the place of a document's.
summarize = bits_per_byte.summarize
summarize_posterior = bits_per_byte.summarize_posterior


def build(task: TaskConfig, *, encode: Encode, bos_id: int, seq_len: int, eos_id: int | None = None) -> list[Example]:
    """An example of a single row per record, drawn with the seed: 100 examples are a subset of 200.

    Records with an empty response are passed over, and those that make more than `seq_len` tokens, as they are when
    training has `too_long = "drop"`: a part of a response would be another question.

    Args:
        task: what is drawn from which file.
        encode: text -> token ids, without special tokens.
        bos_id: id of the beginning-of-text token, which every row begins with.
        seq_len: tokens in the longest row.
        eos_id: id of the end-of-text token, which ends every row and is scored; None: there is none.

    Raises:
        EvalError: the file cannot be read, or no record is left.
    """
    path, end = Path(task.path), () if eos_id is None else (eos_id,)
    document = [] if task.document_field is None else [task.document_field]
    records = read_records(path, list(dict.fromkeys([*task.prompt_fields(), task.response_field, *document])))
    random.Random(task.seed).shuffle(records)

    def fitting() -> Iterator[Example]:
        for record in records:
            response = record.texts[task.response_field]
            row = _row(task.prompt_of(record.texts), response, encode, bos_id, end)
            if response.strip() and len(row.ids) <= seq_len:
                details: dict[str, Any] = {"bytes": len(response.encode()), "tokens": len(row.ids) - row.first}
                if task.document_field is not None:
                    details["document"] = record.texts[task.document_field]
                yield Example(record.id, (row,), details)

    examples = list(islice(fitting(), task.max_examples))
    if not examples:
        raise EvalError(
            f"{path}: none of {len(records)} records has a response and fits with its prompt into rows of {seq_len} tokens; "
            "give others, or longer rows"
        )
    return examples


def _row(prompt: str, response: str, encode: Encode, bos_id: int, end: tuple[int, ...]) -> Row:
    """Both as one text, as they are read; scored from the first token on that the prompt alone does not have, too."""
    alone, ids = list(encode(prompt)), list(encode(prompt + response))
    pairs = enumerate(zip(alone, ids, strict=False))
    shared = next((i for i, (token, other) in pairs if token != other), min(len(alone), len(ids)))
    return Row((bos_id, *ids, *end), first=1 + shared)
