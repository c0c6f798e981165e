"""What makes the comparison with peers fair: the same rows from the same ids, the same ids, and true counts."""

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.data_corpus import convert_tokenizer, library_texts, numbered_texts, tokenizer_files, write_jsonl

CONTENDERS = Path(__file__).resolve().parents[3] / "benchmarks" / "contenders"
IGNORED = -100


@pytest.fixture(scope="module")
def scripts():
    """The modules that the contenders' scripts share, imported as those import them."""
    sys.path.insert(0, str(CONTENDERS))
    try:
        import resume
        import rows

        yield argparse.Namespace(rows=rows, resume=resume)
    finally:
        sys.path.remove(str(CONTENDERS))
        for name in ("rows", "resume"):
            sys.modules.pop(name, None)


def rows_token_by_token(documents, seq_len):
    """The definition, written out: every token's label is the next one in its document; positions restart with rows."""
    inputs, labels, starts = [], [], []
    for ids in documents:
        for place, token in enumerate(ids):
            inputs.append(token)
            labels.append(ids[place + 1] if place + 1 < len(ids) else IGNORED)
            starts.append(place == 0)
    for begin in range(0, len(inputs) - seq_len + 1, seq_len):
        positions: list[int] = []
        for place in range(begin, begin + seq_len):
            positions.append(0 if place == begin or starts[place] else positions[-1] + 1)
        yield inputs[begin : begin + seq_len], labels[begin : begin + seq_len], positions


@settings(max_examples=50, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=20), min_size=1, max_size=12),
    at_once=st.integers(1, 5),
    seq_len=st.integers(2, 11),
)
def test_peers_rows_are_those_of_the_definition(scripts, documents, at_once, seq_len):
    packer = scripts.rows.Packer(seq_len)
    got = [
        tuple(row[name].tolist() for name in ("input_ids", "labels", "position_ids"))
        for begin in range(0, len(documents), at_once)
        for row in packer.add(documents[begin : begin + at_once])
    ]
    assert got == list(rows_token_by_token(documents, seq_len))


def test_documents_are_recognised_whichever_rows_they_were_cut_into(scripts):
    documents = [list(range(number, number + 3 * number + 1)) for number in range(1, 9)]

    def batches(seq_len):
        packer = scripts.rows.Packer(seq_len)
        for ids in itertools.cycle(documents):
            for row in packer.add([ids]):
                yield [row["input_ids"][None], row["labels"][None]]

    expected = sorted(
        hashlib.blake2b(np.array(ids, np.int64).tobytes(), digest_size=8).hexdigest() for ids in documents
    )
    for seq_len in (3, 7, 100):
        assert scripts.rows.hashes(batches(seq_len), len(documents))["documents"] == expected


def test_speed_counts_the_tokens_of_the_time_measured(scripts):
    result = scripts.rows.speed(itertools.repeat([np.zeros((2, 16), np.int64)]), 0.05, 10**12)

    assert result["tokens"] % 32 == 0
    assert result["seconds"] == pytest.approx(0.05, rel=0.5)
    assert result["tokens_per_second"] == pytest.approx(result["tokens"] / result["seconds"])


def test_speed_ends_where_the_text_would_repeat(scripts):
    taken = []

    def batches():
        while True:
            taken.append(32)
            yield [np.zeros((2, 16), np.int64)]

    result = scripts.rows.speed(batches(), 60, 3200)
    assert sum(taken) == 3200
    assert result["tokens"] == 3200 - 416


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([5, 6, 7], {"repeated": 0, "of_those_seen_before": 0, "lost": 0, "same_order": True}),
        ([6, 5, 7], {"repeated": 0, "of_those_seen_before": 0, "lost": 0, "same_order": False}),
        ([4, 5, 7], {"repeated": 1, "of_those_seen_before": 1, "lost": 1, "same_order": False}),
        ([5, 5, 6, 7], {"repeated": 1, "of_those_seen_before": 0, "lost": 0, "same_order": False}),
        ([], {"repeated": 0, "of_those_seen_before": 0, "lost": 3, "same_order": False}),
    ],
)
def test_items_repeated_and_lost_are_counted(scripts, tmp_path, after, expected):
    scripts.resume.keep_order(tmp_path, [1, 2, 3, 4, 5, 6, 7, 8, 9][:7])

    assert scripts.resume.compared(tmp_path, 4, after) == {"compared": 3} | expected


def test_a_window_is_compared_with_as_many_items_of_the_walk(scripts, tmp_path):
    scripts.resume.keep_order(tmp_path, np.array([1, 2, 3, 2**64 - 1, 5], np.uint64))

    counts = scripts.resume.compared(tmp_path, 2, [3, 2**64 - 1], window=2)
    assert counts["compared"] == 2
    assert counts["same_order"]


def test_the_converted_tokenizer_gives_the_ids_of_sentencepiece(tmp_path):
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    model, converted = tokenizer_files(tmp_path)
    reference, engine = SentencePieceProcessor(model_file=str(model)), Tokenizer.from_file(str(converted))
    engine.encode_special_tokens = True
    texts = [text[:2000] for text in itertools.islice(library_texts(10_000_000), 0, 100, 10)]
    texts += ["\n  from  x\t\r\n", "a\u0301 \U0001f600 \ufeff", "</s> <s>", "   "]

    assert [engine.encode(text).ids for text in texts] == [
        [reference.bos_id(), *reference.encode(text), reference.eos_id()] for text in texts
    ]


def test_a_tokenizer_without_a_leading_space_is_converted_too(tmp_path):
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    from data_pipeline.demo.tokenizer import train_tokenizer

    texts = list(itertools.islice(numbered_texts(200), 200))
    (tmp_path / "tokenizer.model").write_bytes(train_tokenizer([texts], 400))
    convert_tokenizer(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json")
    reference = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    engine = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    for text in (*texts[:20], "  két  €\n"):
        assert engine.encode(text, add_special_tokens=False).ids == reference.encode(text)


def test_documents_are_numbered_and_every_file_has_its_share(scripts, tmp_path):
    about = write_jsonl(numbered_texts(10), tmp_path / "documents", 3)

    files = sorted((tmp_path / "documents").iterdir())
    by_file = [
        [scripts.resume.number_of(json.loads(line)["text"]) for line in file.read_text().splitlines()] for file in files
    ]
    assert by_file == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert about["documents"] == 10
    assert about["bytes"] == sum(len(text) for text in scripts.rows.read_texts(tmp_path / "documents"))


def test_library_texts_keep_to_their_limit_and_never_repeat():
    texts = list(library_texts(1_000_000))

    assert 900_000 < sum(len(text.encode()) for text in texts) <= 1_000_000
    assert len(set(texts)) == len(texts)
    assert all(len(text) <= 8000 or "\n" not in text[:-1] for text in texts)
    assert texts == list(library_texts(1_000_000))


def test_processor_time_includes_that_of_child_processes(scripts):
    busy = "import sys, time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint(flush=True)\nsys.stdin.read()"
    before = scripts.rows.cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert scripts.rows.cpu_seconds() - before >= 0.15
        child.stdin.close()
