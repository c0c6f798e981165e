"""How fast text becomes token ids: ours (the fast engine behind its identity check) against its references.

One document after the other in one thread, as a worker of the pipeline does. The documents are the source files of
this Python's standard library and the texts of shared/data beside the repository, where that is there; the tokenizer
is Llama 2's sentencepiece model from there, else one trained on the spot as the demo corpus trains its own. The
peers are sentencepiece, and tokenizers with the vocabulary of the same model and merges by its scores.

The engines take turns. Before each turn of ours its memory of words is emptied ("first"), then it encodes all once
more ("again", which is what a second epoch in memory would see; no claim). A ratio is taken within a repetition, the
median over the repetitions is the claim. All documents are compared with sentencepiece's ids, none may differ; those
of tokenizers are counted too, for information.

    python benchmarks/tokenization.py [--quick | --bench] [--json PATH]
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

# One thread everywhere; read when the libraries are loaded.
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
# Run by path, a script sees its own folder where it needs the repository.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.data_corpus import REAL_DATA  # noqa: E402
from data_pipeline.config import DataConfig, SourceConfig  # noqa: E402
from data_pipeline.demo.tokenizer import train_tokenizer  # noqa: E402
from data_pipeline.encoding.examples import Encoder  # noqa: E402
from data_pipeline.encoding.loading import load_tokenizer  # noqa: E402
from data_pipeline.encoding.sentencepiece_model import PieceKind, SentencePieceModel, parse_model  # noqa: E402
from data_pipeline.encoding.tokenizer import Tokenizer  # noqa: E402

DOCUMENT = 4000
"""Characters of the documents that a record's own cost is measured with."""

Encode = Callable[[str], Any]


def texts(megabytes: float) -> list[str]:
    """Documents of about that many million characters in all."""
    found: list[str] = []
    left = megabytes * 1e6
    for text in _all_texts():
        if left < 0:
            break
        if text:
            found.append(text)
            left -= len(text)
    return found


def _all_texts() -> Iterator[str]:
    if REAL_DATA.is_dir():
        for path in sorted(REAL_DATA.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for line in file:
                    yield "\n".join(value for value in json.loads(line).values() if isinstance(value, str))
        for path in sorted(REAL_DATA.glob("*.txt")):
            text = path.read_text(encoding="utf-8")
            yield from (text[start : start + 10_000] for start in range(0, len(text), 10_000))
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="replace")


def tokenizer_file(folder: Path, documents: Sequence[str]) -> tuple[Path, str]:
    """A sentencepiece model in `folder`, and what it is."""
    path = folder / "tokenizer.model"
    if (shared := REAL_DATA / "llama_tokenizer.model").is_file():
        path.write_bytes(shared.read_bytes())
        return path, "Llama 2"
    path.write_bytes(train_tokenizer([documents], 4096))
    return path, "demo, 4096 pieces"


def conversion(model: SentencePieceModel) -> Encode:
    """The encoding of tokenizers with the vocabulary of `model`, its merges in the order of their pieces' scores."""
    from tokenizers import Tokenizer, models, normalizers

    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    normal = [piece for piece in model.pieces if piece.kind == PieceKind.NORMAL]
    merges = [
        (piece.text[:cut], piece.text[cut:])
        for piece in sorted(normal, key=lambda piece: -piece.score)
        for cut in range(len(piece.text) - 1, 0, -1)
        if piece.text[:cut] in ids and piece.text[cut:] in ids
    ]
    unknown = next(piece.text for piece in model.pieces if piece.kind == PieceKind.UNKNOWN)
    engine = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("\u2581")] * model.adds_space + [normalizers.Replace(" ", "\u2581")]
    engine.normalizer = normalizers.Sequence(steps)
    return lambda text: engine.encode(text, add_special_tokens=False).ids


def seconds_of(encode: Encode, documents: Sequence[str]) -> float:
    """Seconds to encode all documents."""
    start = time.perf_counter()
    for text in documents:
        encode(text)
    return time.perf_counter() - start


def measure(path: Path, documents: Sequence[str], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every engine for all documents, one value per repetition."""
    reference = load_tokenizer(path, "reference")
    converted = conversion(parse_model(path.read_bytes()))
    seconds: dict[str, list[float]] = {name: [] for name in ("first", "again", "sentencepiece", "tokenizers")}
    # Ours encodes twice in its turn.
    parts = {"ours": ("first", "again"), "sentencepiece": ("sentencepiece",), "tokenizers": ("tokenizers",)}
    for order in turns(parts, repetitions):
        encoders = {
            "ours": load_tokenizer(path).encode_ids, "sentencepiece": reference.encode_ids, "tokenizers": converted
        }  # fmt: skip
        for who in order:
            for name in parts[who]:
                seconds[name].append(seconds_of(encoders[who], documents))
    return seconds


def differing(encode: Encode, reference: Tokenizer, documents: Sequence[str]) -> int:
    """How many documents `encode` gives other ids than the reference."""
    return sum(list(encode(text)) != reference.encode(text) for text in documents)


def seconds_to_load(path: Path) -> dict[str, float]:
    """Seconds to load the tokenizer, the identity check included; median of five."""
    found: dict[str, list[float]] = {"auto": [], "reference": []}
    for _ in range(5):
        for engine in ("auto", "reference"):
            start = time.perf_counter()
            load_tokenizer(path, engine)
            found[engine].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def microseconds_per_document(path: Path, documents: Sequence[str]) -> dict[str, float]:
    """What a document of 4,000 characters costs in the engine alone, and from record to example; median of seven."""
    joined = "\n".join(documents)[: 2000 * DOCUMENT]
    records = [{"text": joined[start : start + DOCUMENT]} for start in range(0, len(joined), DOCUMENT)]
    tokenizer = load_tokenizer(path)
    source = SourceConfig(path="unused")
    encoder = Encoder(source, DataConfig(sources={"unused": source}, tokenizer=path), tokenizer)
    calls: dict[str, Callable[[dict[str, str]], Any]] = {
        "engine": lambda record: tokenizer.encode_ids(record["text"]),
        "example": encoder.encode,
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(7):
        for name, call in calls.items():
            start = time.perf_counter()
            for record in records:
                call(record)
            found[name].append(1e6 * (time.perf_counter() - start) / len(records))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(__doc__, quick="half of the text and 3 repetitions, in a minute or two", bench="6 repetitions")
    arguments = parser.parse_args()
    documents = texts(16 if arguments.size == "quick" else 32)
    megabytes = sum(len(text.encode("utf-8", "replace")) for text in documents) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        path, what = tokenizer_file(Path(folder), documents)
        ours, reference = load_tokenizer(path), load_tokenizer(path, "reference")
        if ours.engine == reference.engine:
            parser.exit(2, f"there is no fast engine to measure: {ours.engine_note}\n")
        seconds = measure(path, documents, {"quick": 3, "bench": 6, "full": 9}[arguments.size])
        mismatches = differing(ours.encode_ids, reference, documents)
        others = differing(conversion(parse_model(path.read_bytes())), reference, documents)
        loading, record = seconds_to_load(path), microseconds_per_document(path, documents)
    speeds = {name: [megabytes / value for value in values] for name, values in seconds.items()}
    print(f"{len(documents)} documents, {megabytes:.1f} MB, tokenizer {what}, ours is {ours.engine}")
    print("MB/s ", *(f"{name} {statistics.median(values):.1f}" for name, values in speeds.items()), sep="  ")
    print(f"loading  ours {loading['auto']:.3f} s  sentencepiece {loading['reference']:.3f} s")
    print(
        f"a document of {DOCUMENT} characters  engine {record['engine']:.1f} us  record to example {record['example']:.1f} us"
    )
    print(f"documents with other ids than sentencepiece: ours {mismatches}, tokenizers {others}")
    peers = {"sentencepiece": reference.engine, "tokenizers": f"tokenizers {version('tokenizers')}"}
    claims = [
        claim(f"tokenization_over_{name}", seconds[name], seconds["first"], ">=10", peer)
        for name, peer in peers.items()
    ]
    none = claim("tokenization_documents_with_other_ids", [float(mismatches)], [1.0], "<=0", reference.engine)
    claims.append(none)
    show(claims)
    if arguments.json:
        settings = {"tokenizer": what, "documents": len(documents), "megabytes": megabytes, "engine": ours.engine}
        content = {"settings": settings, "megabytes_per_second": speeds, "loading_seconds": loading}
        content |= {"microseconds_per_document": record, "tokenizers_mismatches": others, "claims": claims}
        write_json(arguments.json, arguments.size, content)


if __name__ == "__main__":
    main()
