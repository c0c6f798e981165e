from __future__ import annotations

import ast
import json
import tokenize
from io import StringIO
from pathlib import Path

import pytest

from data_pipeline.demo import corpus as demo_corpus
from data_pipeline.demo.corpus import DOMAINS, PAIRS, SPLITS, DemoCorpusError, build_demo_corpus
from data_pipeline.demo.pairs import Pair
from data_pipeline.encoding.loading import load_tokenizer

SMALL = {"vocab_size": 512, "max_files": 30}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "corpus"
    build_demo_corpus(out, **SMALL)
    return out


def records(corpus: Path, domain: str, part: str) -> list[dict[str, str]]:
    lines = (corpus / domain / f"{part}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    found = [json.loads(line) for line in lines]
    assert len({record["id"] for record in found}) == len(found)
    return found


def documents(corpus: Path, domain: str, part: str) -> dict[str, str]:
    return {record["id"]: record["text"] for record in records(corpus, domain, part)}


def pairs(corpus: Path, part: str) -> list[Pair]:
    return [Pair(**record) for record in records(corpus, PAIRS, part)]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_builds_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    build_demo_corpus(tmp_path / "again", **SMALL)
    first = content(corpus)
    assert first == content(tmp_path / "again")
    assert sorted(first) == sorted(
        [
            *("corpus.json", "tokenizer.model"),
            *(f"{domain}/{part}.jsonl" for domain in (*DOMAINS, PAIRS) for part in SPLITS),
        ]
    )


def test_the_same_files_are_held_out_in_both_domains(corpus: Path) -> None:
    parts = {(domain, part): documents(corpus, domain, part) for domain in DOMAINS for part in SPLITS}
    assert all(parts.values())
    train = parts["prose", "train"].keys() | parts["code", "train"].keys()
    heldout = parts["prose", "heldout"].keys() | parts["code", "heldout"].keys()
    assert not train & heldout
    assert parts["prose", "heldout"].keys() & parts["code", "heldout"].keys()
    assert any(name.startswith("topic:") for name in parts["prose", "train"])


def test_pairs_come_from_the_files_of_their_part_and_each_text_once(corpus: Path) -> None:
    sources = {part: {pair.id.split(":")[0] for pair in pairs(corpus, part)} for part in SPLITS}
    assert all(sources.values())
    others = {part: {name for domain in DOMAINS for name in documents(corpus, domain, part)} for part in SPLITS}
    assert not sources["train"] & (sources["heldout"] | others["heldout"])
    assert not sources["heldout"] & others["train"]
    both = [*pairs(corpus, "train"), *pairs(corpus, "heldout")]
    texts = [text for pair in both for text in (pair.prompt, pair.response)]
    assert len(set(texts)) == len(texts)


def test_what_is_in_both_parts_stays_held_out_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = '"""Prose of a module. """\n' + "".join(f"value_{n} = compute({n})\n" for n in range(20))
    function = 'def same(x):\n    """The same in all files, and long."""\n    return x + {}\n'
    for number in range(30):
        text = template.replace("Prose", "Prose " * 40).replace("value", f"value_{number}")
        path = tmp_path / "lib" / f"file_{number}.py"
        path.parent.mkdir(exist_ok=True)
        # Equal prompts with different responses, and the other way round.
        path.write_text(f"{text}\n{function.format(number)}\n{function.format(0).replace('same', f'name_{number}')}")
    monkeypatch.setattr(demo_corpus, "_stdlib", lambda: tmp_path / "lib")
    build_demo_corpus(tmp_path / "corpus", vocab_size=400)
    assert len(documents(tmp_path / "corpus", "code", "train")) > 20
    assert not pairs(tmp_path / "corpus", "train")
    assert 1 <= len(pairs(tmp_path / "corpus", "heldout")) <= 2


def test_code_is_python_without_comments_and_every_document_long_enough(corpus: Path) -> None:
    for part in SPLITS:
        for text in documents(corpus, "code", part).values():
            ast.parse(text)
            kinds = {token.type for token in tokenize.generate_tokens(StringIO(text).readline)}
            assert tokenize.COMMENT not in kinds
        for domain in DOMAINS:
            assert min(map(len, documents(corpus, domain, part).values())) >= 200


def test_tokenizer_gives_every_document_back(corpus: Path) -> None:
    tokenizer = load_tokenizer(corpus)
    assert tokenizer.vocab_size == 512
    for domain in DOMAINS:
        for part in SPLITS:
            for text in documents(corpus, domain, part).values():
                assert tokenizer.decode(tokenizer.encode(text)) == text
    for text in ("  two  spaces ", "\ttab\r\n", "é漢😀", "x\x00y", "2024"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("2024")) == 4


def test_description_counts_what_is_there(corpus: Path) -> None:
    description = json.loads((corpus / "corpus.json").read_text())
    assert description["schema"] == 3
    assert description["settings"]["max_files"] == 30
    tokenizer = load_tokenizer(corpus)
    assert description["domains"].keys() == {*DOMAINS, PAIRS}
    for domain in description["domains"]:
        for part in SPLITS:
            texts = (
                [pair.prompt + pair.response for pair in pairs(corpus, part)]
                if domain == PAIRS
                else list(documents(corpus, domain, part).values())
            )
            counts = description["domains"][domain][part]
            assert counts["documents"] == len(texts)
            assert counts["bytes"] == sum(len(text.encode()) for text in texts)
            assert counts["tokens"] == sum(len(tokenizer.encode(text)) for text in texts)


def test_paragraphs_of_held_out_prose_are_not_trained_on(corpus: Path) -> None:
    def paragraphs(part: str) -> set[str]:
        texts = documents(corpus, "prose", part).values()
        return {" ".join(one.split()) for text in texts for one in text.split("\n\n")}

    assert not {one for one in paragraphs("heldout") & paragraphs("train") if len(one) >= 40}


def test_quoted_held_out_paragraphs_are_removed() -> None:
    secret, public = "a held out paragraph " * 5, "another paragraph " * 20
    heldout = [demo_corpus.Document("h", secret)]
    train = [demo_corpus.Document("t", f"{public}\n\n    {secret}\n\n{public}"), demo_corpus.Document("u", secret)]
    kept = list(demo_corpus._without_paragraphs_of(heldout, train))
    assert kept == [demo_corpus.Document("t", f"{public}\n\n{public}")]


def test_built_again_only_when_something_differs(corpus: Path) -> None:
    def stamp() -> int:
        return (corpus / "corpus.json").stat().st_ino

    first = stamp()
    build_demo_corpus(corpus, **SMALL)
    assert stamp() == first
    description = json.loads((corpus / "corpus.json").read_text())
    description["settings"]["python"] = "3.0.0"
    (corpus / "corpus.json").write_text(json.dumps(description))
    build_demo_corpus(corpus, **SMALL)
    second = stamp()
    assert second != first
    build_demo_corpus(corpus, **SMALL, force=True)
    assert stamp() != second
    description = json.loads((corpus / "corpus.json").read_text())
    whole = description["domains"].pop("code")
    (corpus / "corpus.json").write_text(json.dumps(description))
    assert build_demo_corpus(corpus, **SMALL)["domains"]["code"] == whole
    assert [path.name for path in corpus.parent.iterdir()] == ["corpus"]


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(texts: object, vocab_size: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_corpus, "train_tokenizer", fail)
    with pytest.raises(KeyboardInterrupt):
        build_demo_corpus(tmp_path / "corpus", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_and_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DemoCorpusError, match="vocab size 319 is too small"):
        build_demo_corpus(tmp_path / "corpus", vocab_size=319)
    with pytest.raises(DemoCorpusError, match="max files 1 is too few"):
        build_demo_corpus(tmp_path / "corpus", max_files=1)
    (tmp_path / "precious").touch()
    with pytest.raises(DemoCorpusError, match="exists and is no demo corpus"):
        build_demo_corpus(tmp_path, force=True)
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "[]", "{"])
def test_a_damaged_description_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text(text)
    with pytest.raises(DemoCorpusError, match="exists and is no demo corpus"):
        build_demo_corpus(tmp_path)


def library(root: Path) -> Path:
    """A standard library as distributions lay it out, with files that must be left out."""
    body = '"""' + "Prose of module. " * 20 + '"""\n' + "".join(f"value_{n} = compute(value_{n})\n" for n in range(20))
    good = {
        "good.py": body,
        "package/also_good.py": body.replace("value", "other"),
        "umlaut.py": "# -*- coding: latin-1 -*-\n" + body + "ä = 1\n",
    }
    bad = {
        "test/test_good.py": body,
        "package/tests/test_x.py": body,
        "dist-packages/third.py": body,
        "site-packages/third.py": body,
        "_sysconfigdata_x.py": body,
        "sitecustomize.py": body,
        "config-3.11-x86_64/run.py": body,
        "huge.py": body + "x = 1\n" * 40_000,
        "table.py": "table = {\n" + "".join(f"    {n}: 'a long literal {n}',\n" for n in range(100)) + "}\n",
        "broken.py": "def f(:\n" + body,
        "good_copy.py": body,
        "null.py": "x = '\0'\n" * 50,
    }
    for name, text in {**good, **bad}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="latin-1" if "latin-1" in text else "utf-8")
    (root / "bytes.py").write_bytes(b"x = '\xff\xfe'\n" * 50)
    (root / "dangling.py").symlink_to(root / "nowhere.py")
    return root


def test_only_the_sources_worth_learning_from_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_corpus, "_stdlib", lambda: library(tmp_path / "lib"))
    description = build_demo_corpus(tmp_path / "corpus", vocab_size=320)
    used = {name for part in SPLITS for name in documents(tmp_path / "corpus", "code", part)}
    assert used == {"good.py", "package/also_good.py", "umlaut.py"}
    assert description["files"]["used"] == 3


def test_a_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(demo_corpus, "_stdlib", lambda: tmp_path / "lib")
    with pytest.raises(DemoCorpusError, match="has 0 source files with enough text"):
        build_demo_corpus(tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()
