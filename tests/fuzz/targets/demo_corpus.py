"""The description of a demo corpus, as a second build looks at it."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from unittest import mock

from data_pipeline.commands.demo import demo
from data_pipeline.demo.corpus import DOMAINS, PAIRS, SPLITS, DemoCorpusError, Settings
from tests.fuzz.target import Target

SETTINGS = Settings(vocab_size=512, max_files=30)


def _corpus() -> dict[str, bytes]:
    counts = {"documents": 3, "bytes": 1000, "tokens": 250, "tokens_per_byte": 0.25}
    description = {
        "schema": 3,
        "settings": asdict(SETTINGS),
        "files": {"found": 30, "used": 29},
        "tokenizer": {"vocab_size": 512},
        "domains": {domain: dict.fromkeys(SPLITS, counts) for domain in (*DOMAINS, PAIRS)},
    }
    return {"corpus/corpus.json": json.dumps(description).encode()}


def _build(folder: Path) -> None:
    """It is shown, or the corpus is built anew, which takes too long here."""
    anew = mock.patch("data_pipeline.demo.corpus._build", side_effect=DemoCorpusError("corpus: is built anew"))
    with anew, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert demo(folder / "corpus", vocab_size=512, max_files=30) == 0


TARGETS = [Target(name="demo corpus", make=_corpus, read=_build, errors=(DemoCorpusError,), share=0.5)]
