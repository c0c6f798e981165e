"""The demo corpus: two text domains and instruction pairs, made from the Python installation that runs this.

*prose* is the old domain (the language reference that `help()` shows, and the docstrings of the standard library);
*code* is the new one (the sources of the same files, without docstrings and comments). *pairs* are functions of these files,
to be written from their signature and docstring. About a tenth of the files are held out, the same files in all three.
Two builds with one Python give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.demo.pairs import Pair, function_pairs, without_duplicates
from data_pipeline.demo.source_split import docstrings, literal_share, parse, strip_prose
from data_pipeline.demo.tokenizer import MIN_VOCAB_SIZE, train_tokenizer
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import Tokenizer
from data_pipeline.errors import PipelineError
from data_pipeline.files import read_json, write_atomically

SCHEMA = 3
DOMAINS = ("prose", "code")
PAIRS = "pairs"
SPLITS = ("train", "heldout")
HELDOUT_SHARE = 0.1
MIN_CHARACTERS = 200
MIN_PARAGRAPH_CHARACTERS = 40
MAX_FILE_BYTES = 200_000
MAX_LITERAL_SHARE = 0.6

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
# Written when Python was built or installed: they describe one machine, not the language.
_SKIPPED_PREFIXES = ("_sysconfigdata", "sitecustomize", "usercustomize")

_Item = TypeVar("_Item")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""


class DemoCorpusError(PipelineError):
    """The demo corpus cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Document:
    """One document of the corpus: where it came from, and its text."""

    id: str
    text: str


@dataclass(frozen=True)
class SourceFile:
    """What the corpus takes from one source file of the standard library."""

    prose: Document
    code: Document
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the bytes of a demo corpus; a corpus made with others is rebuilt."""

    schema: int = SCHEMA
    python: str = sys.version.split()[0]
    vocab_size: int = 2048
    max_files: int | None = None
    heldout_share: float = HELDOUT_SHARE
    min_characters: int = MIN_CHARACTERS


def build_demo_corpus(
    out: Path,
    *,
    vocab_size: int = 2048,
    max_files: int | None = None,
    force: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Make the demo corpus in the folder `out`, unless the same one is there; returns its description (corpus.json).

    Args:
        out: gets {prose,code,pairs}/{train,heldout}.jsonl, tokenizer.model and corpus.json, all at once by a rename.
        vocab_size: pieces of the tokenizer; less when there is too little text.
        max_files: use this many modules and as many help topics at most; all of them when None.
        force: build again even if the same corpus is there.
        progress: told how far the build is.

    Raises:
        DemoCorpusError: `out` holds something else, a setting is out of range, or no sources are found.
    """
    settings = Settings(vocab_size=vocab_size, max_files=max_files)
    _refuse_bad_settings(out, settings)
    before = None if force else read_description(out)
    if before is not None and before["settings"] == asdict(settings) and _is_whole(before):
        return before
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.building-"))
    try:
        building.chmod(0o755)
        description = _build(building, settings, progress)
        _swap(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return description


def read_description(out: Path) -> dict[str, Any] | None:
    """The corpus.json of a finished demo corpus, or None where there is none."""
    try:
        description = read_json(out / "corpus.json")
    except (OSError, ValueError):
        return None
    return description if isinstance(description, dict) and "settings" in description else None


def _is_whole(description: Mapping[str, Any]) -> bool:
    """Whether it has the counts that a finished corpus's has."""
    try:
        counts = [description["domains"][domain][part] for domain in (*DOMAINS, PAIRS) for part in SPLITS]
        numbers = [count[key] for count in counts for key in ("documents", "bytes", "tokens", "tokens_per_byte")]
        numbers += [description["files"]["found"], description["files"]["used"], description["tokenizer"]["vocab_size"]]
    except (KeyError, TypeError):
        return False
    return all(isinstance(number, int | float) and 0 <= number < 2**63 for number in numbers)


def _refuse_bad_settings(out: Path, settings: Settings) -> None:
    if settings.vocab_size < MIN_VOCAB_SIZE:
        raise DemoCorpusError(
            f"vocab size {settings.vocab_size} is too small: 256 byte pieces, 3 special pieces and the characters need "
            f"{MIN_VOCAB_SIZE} at least"
        )
    if settings.max_files is not None and settings.max_files < 2:
        raise DemoCorpusError(f"max files {settings.max_files} is too few: one trains and one is held out, so give 2")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and read_description(out) is None:
        raise DemoCorpusError(f"{out} exists and is no demo corpus: name another folder, or remove it")


def _build(folder: Path, settings: Settings, progress: Progress) -> dict[str, Any]:
    documents, pairs, files = _read_documents(settings.max_files, progress)
    long_enough = {
        domain: [document for document in documents[domain] if len(document.text) >= MIN_CHARACTERS]
        for domain in DOMAINS
    }
    is_heldout = _heldout_rule(long_enough)
    texts = _split(long_enough, is_heldout)
    split: dict[tuple[str, str], Sequence[Document | Pair]] = {**texts, **_split_pairs(pairs, is_heldout)}
    for (domain, part), records in split.items():
        (folder / domain).mkdir(exist_ok=True)
        _write_jsonl(folder / domain / f"{part}.jsonl", records)
    progress("training the tokenizer", 0, 1)
    by_domain = [[document.text for document in _shuffled(texts[domain, "train"])] for domain in DOMAINS]
    (folder / "tokenizer.model").write_bytes(train_tokenizer(by_domain, settings.vocab_size))
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    counts = {key: _counts([_text_of(record) for record in part], tokenizer) for key, part in split.items()}
    progress("training the tokenizer", 1, 1)
    description = {
        "schema": SCHEMA,
        "settings": asdict(settings),
        "files": files,
        "tokenizer": {"vocab_size": tokenizer.vocab_size},
        "domains": {domain: {part: counts[domain, part] for part in SPLITS} for domain in (*DOMAINS, PAIRS)},
    }
    text = json.dumps(description, indent=2) + "\n"
    write_atomically(folder / "corpus.json", lambda file: file.write(text.encode()))
    return description


def _read_documents(
    max_files: int | None, progress: Progress
) -> tuple[dict[str, list[Document]], dict[str, tuple[Pair, ...]], dict[str, int]]:
    """All documents by domain, all pairs by file, and how many source files were found and used; copies are used once."""
    documents: dict[str, list[Document]] = {"prose": list(_topics(max_files)), "code": []}
    pairs: dict[str, tuple[Pair, ...]] = {}
    files = _sample(list(_source_files(_stdlib())), lambda file: file[0], max_files)
    seen: set[str] = set()
    for done, (name, path) in enumerate(files, start=1):
        source = _read_source(name, path)
        if source is not None and source.code.text not in seen:
            seen.add(source.code.text)
            documents["prose"].append(source.prose)
            documents["code"].append(source.code)
            pairs[name] = source.pairs
        progress("reading the standard library", done, len(files))
    return documents, pairs, {"found": len(files), "used": len(seen)}


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _source_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path relative to `root`, path) of the sources worth learning from, sorted."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS and "." not in name)
        for name in sorted(names):
            path = Path(folder) / name
            if not name.endswith(".py") or name.startswith(_SKIPPED_PREFIXES) or not path.is_file():
                continue
            if path.stat().st_size <= MAX_FILE_BYTES:
                yield path.relative_to(root).as_posix(), path


def _read_source(name: str, path: Path) -> SourceFile | None:
    """What one source file gives; None if it is not readable Python or mostly a table of literals."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        prose, code = "\n\n".join(docstrings(parse(source))), strip_prose(source)
    except (OSError, SyntaxError, ValueError, tokenize.TokenError, RecursionError):
        return None
    if literal_share(code) > MAX_LITERAL_SHARE:
        return None
    pairs = tuple(function_pairs(name, source, code))
    return SourceFile(Document(name, _encodable(prose)), Document(name, _encodable(code)), pairs)


def _topics(max_topics: int | None) -> Iterator[Document]:
    """Yield the sections of the language reference that `help()` shows; none where they are not installed."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name, text in _sample(sorted(topics.items()), lambda item: item[0], max_topics):
        yield Document(f"topic:{name}", _encodable(text.strip()))


def _encodable(text: str) -> str:
    """`text` with lone surrogates replaced: they exist in Python strings but have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _sample(items: list[_Item], name: Callable[[_Item], str], at_most: int | None) -> list[_Item]:
    """At most so many of the `items`, the choice depending on their names only, in their own order."""
    if at_most is None or len(items) <= at_most:
        return items
    chosen = {name(item) for item in sorted(items, key=lambda item: _position(name(item)))[:at_most]}
    return [item for item in items if name(item) in chosen]


def _shuffled(documents: list[Document]) -> list[Document]:
    return sorted(documents, key=lambda document: _position(document.id))


def _position(document_id: str) -> float:
    """A fixed pseudorandom place of a document in [0, 1)."""
    return int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:6]) / 2**48


def _heldout_rule(documents: dict[str, list[Document]]) -> Callable[[str], bool]:
    """Which names are held out; of the files with both prose and code one is, and one is not."""
    ids = [{document.id for document in documents[domain]} for domain in DOMAINS]
    in_both = sorted(ids[0] & ids[1], key=_heldout_position)
    if len(in_both) < 2:
        raise DemoCorpusError(
            f"the standard library in {_stdlib()} has {len(in_both)} source files with enough text, and 2 are needed: "
            "use a Python installed with its sources, or allow more files"
        )
    # The first one is held out even if a small sample has none below the share.
    first, last = in_both[0], in_both[-1]
    return lambda name: name != last and (name == first or _heldout_position(name) < HELDOUT_SHARE)


def _split(
    documents: dict[str, list[Document]], is_heldout: Callable[[str], bool]
) -> dict[tuple[str, str], list[Document]]:
    """Divide the documents into train and held-out parts, by file."""
    split = {
        (domain, part): [document for document in documents[domain] if is_heldout(document.id) == (part == "heldout")]
        for domain in DOMAINS
        for part in SPLITS
    }
    split["prose", "train"] = list(_without_paragraphs_of(split["prose", "heldout"], split["prose", "train"]))
    return split


def _split_pairs(
    pairs: dict[str, tuple[Pair, ...]], is_heldout: Callable[[str], bool]
) -> dict[tuple[str, str], list[Pair]]:
    """Divide the pairs by file, each prompt and each response once; what both parts have stays held out."""
    by_part = {
        part: [pair for name, of_file in pairs.items() if is_heldout(name) == (part == "heldout") for pair in of_file]
        for part in SPLITS
    }
    seen: set[str] = set()
    heldout = list(without_duplicates(by_part["heldout"], seen))
    return {(PAIRS, "train"): list(without_duplicates(by_part["train"], seen)), (PAIRS, "heldout"): heldout}


def _heldout_position(document_id: str) -> float:
    # Another hash than the sample's, whose chosen few all have small positions.
    return _position(f"heldout {document_id}")


def _without_paragraphs_of(heldout: list[Document], train: list[Document]) -> Iterator[Document]:
    """Yield `train` without the paragraphs that `heldout` has too: help topics quote each other at length."""
    secret = {_paragraph_key(part) for document in heldout for part in document.text.split("\n\n")}
    secret = {key for key in secret if len(key) >= MIN_PARAGRAPH_CHARACTERS}
    for document in train:
        kept = [part for part in document.text.split("\n\n") if _paragraph_key(part) not in secret]
        text = "\n\n".join(kept)
        if len(text) >= MIN_CHARACTERS:
            yield Document(document.id, text)


def _paragraph_key(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _write_jsonl(path: Path, records: Iterable[Document | Pair]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def _text_of(record: Document | Pair) -> str:
    """All text of a document, or of a pair as the model reads it."""
    return record.text if isinstance(record, Document) else record.prompt + record.response


def _counts(texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, Any]:
    size = sum(len(text.encode()) for text in texts)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    return {
        "documents": len(texts),
        "bytes": size,
        "tokens": tokens,
        "tokens_per_byte": round(tokens / max(size, 1), 4),
    }


def _swap(building: Path, out: Path) -> None:
    """Put the finished folder in the place of the old one, which is moved aside first and then removed."""
    if not out.exists():
        building.rename(out)
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old-"))
    out.rename(old / "corpus")
    building.rename(out)
    shutil.rmtree(old, ignore_errors=True)
