"""Load a tokenizer with its reference library and, where it gives the same ids, a faster engine.

The reference for a `tokenizer.model` is sentencepiece itself: the usual conversion of the same file to a fast tokenizer
builds its merges in another order and gives other ids. The reference for a `tokenizer.json` is tokenizers. A faster
engine does the work only where it gives the reference's ids (fast_engine.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data_pipeline.config import TOKENIZER_FILES
from data_pipeline.encoding.json_tokenizer import JsonTokenizer
from data_pipeline.encoding.sentencepiece_tokenizer import SentencePieceTokenizer
from data_pipeline.encoding.tokenizer import Tokenizer, TokenizerError


def load_tokenizer(path: Path | str, engine: Literal["auto", "reference"] = "auto") -> Tokenizer:
    """Load a sentencepiece model, a tokenizer.json, or what a folder holds of them (tokenizer.model wins).

    Args:
        path: the file or the folder.
        engine: auto encodes with a faster library where one is installed and gives the same ids; reference never does.

    Raises:
        TokenizerError: there is no tokenizer at `path`, or the file is damaged.
    """
    file = _tokenizer_file(Path(path))
    try:
        tokenizer = JsonTokenizer(file) if file.suffix == ".json" else SentencePieceTokenizer(file)
    except TokenizerError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"the tokenizer {file} cannot be read ({error}); copy it again from its model") from error
    if engine == "auto":
        tokenizer.use_fast_engine()
    return tokenizer


def _tokenizer_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in TOKENIZER_FILES:
        if (path / name).is_file():
            return path / name
    raise TokenizerError(
        f"there is no tokenizer at {path}: name a {' or a '.join(TOKENIZER_FILES)}, or a folder with one of them"
    )
