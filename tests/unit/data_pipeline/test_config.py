from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig, SourceConfig


@pytest.fixture
def source(tmp_path: Path) -> SourceConfig:
    (tmp_path / "a.jsonl").write_text("{}\n")
    return SourceConfig(path=tmp_path / "a.jsonl")


def problems(config: DataConfig) -> dict[str, str]:
    return dict(config.problems())


def test_good_settings_have_no_problems(source: SourceConfig, tokenizer_path: Path) -> None:
    for tokenizer in (tokenizer_path, tokenizer_path.parent):
        assert problems(DataConfig(sources={"a": source}, tokenizer=tokenizer)) == {}
    folder = SourceConfig(path=source.path.parent)
    assert problems(DataConfig(sources={"a": folder}, tokenizer=tokenizer_path)) == {}


def test_no_sources(tokenizer_path: Path) -> None:
    assert "name at least one" in problems(DataConfig(sources={}, tokenizer=tokenizer_path))["sources"]


def test_missing_paths_say_how_to_make_the_demo_corpus(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = problems(
        DataConfig(
            sources={"code": SourceConfig(path=tmp_path / "none"), "prose": SourceConfig(path=tmp_path / "empty")},
            tokenizer=tmp_path / "no.model",
        )
    )
    assert sorted(found) == ["sources.code.path", "sources.prose.path", "tokenizer"]
    assert all("`python -m data_pipeline demo`" in message for message in found.values())
    assert "holds no .jsonl" in found["sources.prose.path"]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weight(source: SourceConfig, tokenizer_path: Path, weight: float) -> None:
    config = DataConfig(sources={"a": SourceConfig(path=source.path, weight=weight)}, tokenizer=tokenizer_path)
    assert f"{weight} is not above 0" in problems(config)["sources.a.weight"]


def test_compressed_shards_and_empty_field(tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"")
    config = DataConfig(
        sources={"a": SourceConfig(path=tmp_path / "a.jsonl.gz", text_field="")}, tokenizer=tokenizer_path
    )
    assert "decompress" in problems(config)["sources.a.path"]
    assert "name the field" in problems(config)["sources.a.text_field"]


def test_seq_len(source: SourceConfig, tokenizer_path: Path) -> None:
    assert problems(DataConfig(sources={"a": source}, tokenizer=tokenizer_path, seq_len=8)) == {}
    assert "7 tokens" in problems(DataConfig(sources={"a": source}, tokenizer=tokenizer_path, seq_len=7))["seq_len"]


def test_tokenizer_of_no_known_kind(source: SourceConfig, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").touch()
    assert "neither" in problems(DataConfig(sources={"a": source}, tokenizer=tmp_path / "vocab.txt"))["tokenizer"]
    assert "holds neither" in problems(DataConfig(sources={"a": source}, tokenizer=tmp_path))["tokenizer"]


def test_importing_the_settings_is_light_and_public_names_are_lazy() -> None:
    program = (
        "import sys, data_pipeline, data_pipeline.config\n"
        "heavy = {'torch', 'numpy', 'sentencepiece', 'tokenizers', 'rich', 'tyro'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "for name in data_pipeline.__all__: getattr(data_pipeline, name)\n"
        "try: data_pipeline.nothing\n"
        "except AttributeError: pass\n"
        "else: raise SystemExit('no AttributeError')\n"
        "assert 'torch' not in sys.modules\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
