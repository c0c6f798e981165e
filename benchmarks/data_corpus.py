"""The documents and tokenizers of the data benchmarks: made anew, the same every time."""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real texts and a real tokenizer, which not every machine has."""
LLAMA_TOKENIZER = REAL_DATA / "llama_tokenizer.model"
_TEXT_SUFFIXES = (".py", ".md", ".rst", ".txt", ".pyi")
_LONGEST_DOCUMENT = 8_000
_SPACE = "\u2581"


def library_texts(max_bytes: int) -> Iterator[str]:
    """Yield the sources and texts of this Python's standard library, then of the installed packages, up to `max_bytes`.

    Files are cut at the ends of lines into documents of at most 8,000 characters (longer only where a line is). Real text, and none of it twice: an engine that remembers words gains from repeated text what it would not in life.
    """
    paths = sysconfig.get_paths()
    library, packages = Path(paths["stdlib"]), Path(paths["purelib"])
    seen: set[str] = set()
    for folder in (library, packages):
        for file in sorted(folder.rglob("*")):
            if file.suffix not in _TEXT_SUFFIXES or not file.is_file():
                continue
            if folder is library and "site-packages" in file.parts:
                continue
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # the standard library tests such files
            for document in _cut(text):
                if not document.strip() or document in seen:
                    continue
                seen.add(document)
                max_bytes -= len(document.encode())
                if max_bytes < 0:
                    return
                yield document


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _LONGEST_DOCUMENT:
        end = text.rfind("\n", start, start + _LONGEST_DOCUMENT) + 1 or text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end
    yield text[start:]


def numbered_texts(count: int) -> Iterator[str]:
    """Yield `count` short texts of invented words, of 280 bytes on average, that start with their number."""
    draw = random.Random(0)
    syllables = [first + vowel for first in "bcdfghklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "an", "er", "or")]
    words = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3, 4)))) for _ in range(5000)]
    for number in range(count):
        yield f"{number} {' '.join(draw.choices(words, k=draw.randrange(10, 75)))}."


def write_jsonl(texts: Iterator[str], folder: Path, num_files: int) -> dict[str, Any]:
    """Write texts to the .jsonl files of a new folder in turn; return how many there are, and their bytes."""
    folder.mkdir()
    files = [(folder / f"part-{number:03d}.jsonl").open("w", encoding="utf-8") for number in range(num_files)]
    documents = text_bytes = 0
    try:
        for text in texts:
            files[documents % num_files].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            documents += 1
            text_bytes += len(text.encode())
    finally:
        for file in files:
            file.close()
    return {"documents": documents, "bytes": text_bytes, "files": num_files}


def tokenizer_label() -> str:
    """Which model `tokenizer_files` gives."""
    return "llama-2" if LLAMA_TOKENIZER.is_file() else "demo"


def tokenizer_files(folder: Path) -> tuple[Path, Path]:
    """A sentencepiece model, and the same as a tokenizer.json in `folder` for transformers."""
    model = LLAMA_TOKENIZER
    if not model.is_file():
        from data_pipeline.demo.tokenizer import train_tokenizer

        model = folder / "tokenizer.model"
        model.write_bytes(train_tokenizer([list(library_texts(2_000_000))], 4096))
    converted = folder / "tokenizer.json"
    convert_tokenizer(model, converted)
    return model, converted


def convert_tokenizer(model: Path, file: Path) -> None:
    """Write a sentencepiece BPE model as a tokenizer.json that gives its ids.

    The merges are ranked by the score of what they make, as sentencepiece ranks them. (transformers 5 ranks those of a
    tokenizer.model by id, which gives other ids for runs of spaces.)
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = SentencePieceProcessor(model_file=str(model))
    size = pieces.vocab_size()
    vocabulary = {pieces.id_to_piece(i): i for i in range(size)}
    mergeable = {
        pieces.id_to_piece(i): pieces.get_score(i)
        for i in range(size)
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i) or pieces.is_unused(i))
    }
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(mergeable, key=lambda piece: -mergeable[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in mergeable and piece[cut:] in mergeable
    ]
    unknown, bos, eos = (pieces.id_to_piece(i) for i in (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()))
    engine = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    if pieces.encode("a", out_type=str)[0].startswith(_SPACE):
        spaces.insert(0, normalizers.Prepend(_SPACE))
    engine.normalizer = normalizers.Sequence(spaces)
    engine.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    engine.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (unknown, bos, eos)])
    engine.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, pieces.bos_id()), (eos, pieces.eos_id())]
    )
    engine.save(str(file))
