"""Text -> token ids with the tokenizer's own reference implementation, for scoring a model folder."""

from __future__ import annotations

from pathlib import Path

from evals.errors import EvalError
from evals.scoring.rows import Encode

FILES = ("tokenizer.model", "tokenizer.json")


def load_encoder(path: Path) -> tuple[Encode, int | None]:
    """Open a tokenizer.

    Where both files are, sentencepiece's tokenizer.model is used: tokenizer.json is a conversion, whose ids can differ.

    Args:
        path: tokenizer.model, tokenizer.json, or a folder with one of them.

    Returns:
        The function text -> ids without special tokens, and the beginning-of-text id (None when the file has none).

    Raises:
        EvalError: there is no tokenizer at the path, or it cannot be opened.
    """
    path = Path(path)
    file = next((path / name for name in FILES if (path / name).is_file()), path) if path.is_dir() else path
    if not file.is_file():
        raise EvalError(f"{path}: no tokenizer there; give a {' or a '.join(FILES)}, or a folder with one of them")
    try:
        return _tokenizers(file) if file.suffix == ".json" else _sentencepiece(file)
    except Exception as error:  # both libraries raise bare Exception or RuntimeError
        raise EvalError(f"{file}: cannot be opened as a tokenizer ({error}); give a {' or a '.join(FILES)}") from error


def _sentencepiece(file: Path) -> tuple[Encode, int | None]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    bos_id = processor.bos_id()
    return processor.encode, bos_id if bos_id >= 0 else None


def _tokenizers(file: Path) -> tuple[Encode, int | None]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    # As in training: a document is neither cut nor padded, and "</s>" in its text is text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    bos_id = next((i for t in ("<s>", "<|begin_of_text|>") if (i := tokenizer.token_to_id(t)) is not None), None)
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, bos_id
