from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline.encoding import load_tokenizer
from data_pipeline.rendering import render_row
from data_pipeline.stream import Row


def test_documents_and_missing_labels_are_visible(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    first, second = tokenizer.encode("the dog"), tokenizer.encode("the fox é")
    inputs = [1, *first, 2, 1, *second]
    labels = [*first, 2, -100, *second, 2]
    positions = [*range(len(first) + 2), *range(len(second) + 1)]
    row = Row(0, *(np.array(values, dtype=np.int64) for values in (inputs, labels, positions)))
    a, b = len(first) + 2, len(second) + 1
    assert render_row(row, tokenizer).split("\n") == [
        f"── inputs 0 to {a - 1}: {a} tokens, {a - 1} with a label ──",
        "<BOS>the dog⟦<EOS>⟧",
        f"── inputs {a} to {a + b - 1}: {b} tokens, {b} with a label ──",
        "<BOS>the fox é",
    ]
