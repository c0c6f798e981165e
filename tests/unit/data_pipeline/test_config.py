from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.sources.suffixes import data_files
from tests.permissions import locked


@pytest.fixture
def source(tmp_path: Path) -> SourceConfig:
    (tmp_path / "a.jsonl").write_text("{}\n")
    return SourceConfig(path=str(tmp_path / "a.jsonl"))


def problems(config: DataConfig) -> dict[str, str]:
    return dict(config.problems())


def test_good_settings_have_no_problems(source: SourceConfig, tokenizer_path: Path) -> None:
    for tokenizer in (tokenizer_path, tokenizer_path.parent):
        assert problems(DataConfig(sources={"a": source}, tokenizer=tokenizer)) == {}
    folder = SourceConfig(path=str(Path(source.path).parent))
    assert problems(DataConfig(sources={"a": folder}, tokenizer=tokenizer_path)) == {}


def test_no_sources(tokenizer_path: Path) -> None:
    assert "name at least one" in problems(DataConfig(sources={}, tokenizer=tokenizer_path))["sources"]


def missing(folder: Path) -> dict[str, str]:
    (folder / "empty").mkdir(parents=True)
    sources = {
        "code": SourceConfig(path=str(folder / "none")),
        "prose": SourceConfig(path=str(folder / "empty")),
    }
    found = problems(DataConfig(sources=sources, tokenizer=folder / "no.model"))
    assert sorted(found) == ["sources.code.path", "sources.prose.path", "tokenizer"]
    return found


def test_missing_paths_of_the_demo_say_how_to_make_them(tmp_path: Path) -> None:
    found = missing(tmp_path / "runs" / "demo")
    assert all("`python -m data_pipeline demo`" in message for message in found.values())


def test_other_missing_paths_say_what_to_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    # A folder whose name does not come from this test's.
    folder = tmp_path_factory.mktemp("own")
    found = missing(folder)
    assert found["sources.code.path"] == f"{folder}/none does not exist; name a file or folder that does"
    assert found["sources.prose.path"].startswith(f"the folder {folder}/empty holds no .jsonl")
    assert found["sources.prose.path"].endswith(".txt file (in subfolders only .txt is looked for); name one that does")
    assert found["tokenizer"] == (
        f"{folder}/no.model does not exist; name a tokenizer.model or tokenizer.json, or a folder with one of them"
    )


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weight(source: SourceConfig, tokenizer_path: Path, weight: float) -> None:
    config = DataConfig(sources={"a": SourceConfig(path=str(source.path), weight=weight)}, tokenizer=tokenizer_path)
    assert f"{weight} is not above 0" in problems(config)["sources.a.weight"]


def test_a_file_of_no_known_kind(tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    config = DataConfig(
        sources={"a": SourceConfig(path=str(tmp_path / "a.csv"), text_field="")}, tokenizer=tokenizer_path
    )
    assert ".jsonl.gz" in problems(config)["sources.a.path"]
    assert "name the field" in problems(config)["sources.a.text_field"]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow", "a.txt", "deep/er/a.txt"]
)
def test_files_of_every_kind_are_found_in_a_folder(tmp_path: Path, tokenizer_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    (folder / name).parent.mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "b.txt").touch()
    config = DataConfig(sources={"a": SourceConfig(path=str(folder))}, tokenizer=tokenizer_path)
    assert "holds no" in problems(config)["sources.a.path"]
    (folder / name).touch()
    assert problems(config) == {}
    assert data_files(folder) == [folder / name]


def test_the_index_of_mds_shards_stands_for_their_folder(tmp_path: Path) -> None:
    (tmp_path / "index.json").touch()
    (tmp_path / "a.jsonl").touch()
    assert data_files(tmp_path) == [tmp_path / "index.json"]


def test_a_url_is_not_looked_for_on_disk(tokenizer_path: Path) -> None:
    assert problems(DataConfig(sources={"a": SourceConfig(path="s3://b/c")}, tokenizer=tokenizer_path)) == {}
    assert problems(DataConfig(sources={"a": SourceConfig(dataset="owner/name")}, tokenizer=tokenizer_path)) == {}


def test_a_source_is_a_path_or_a_dataset(source: SourceConfig, tokenizer_path: Path) -> None:
    for wrong in (SourceConfig(), SourceConfig(path=source.path, dataset="owner/name")):
        config = DataConfig(sources={"a": wrong}, tokenizer=tokenizer_path)
        assert "not both" in problems(config)["sources.a.path"]


@pytest.mark.parametrize(
    ("kind", "template", "message"),
    [
        ("text", "{x}", "does nothing for kind text"),
        ("chat", "{x}", "does nothing for kind chat"),
        ("prompt", "Answer:", "names no field"),
        ("prompt", "{0}", "no name"),
        ("alpaca", "{instruction", "cannot be read"),
        ("prompt", "Q: {question}\n", None),
        ("alpaca", "{instruction} {{literally}}", None),
    ],
)
def test_template(source: SourceConfig, tokenizer_path: Path, kind: Any, template: str, message: str | None) -> None:
    config = DataConfig(
        sources={"a": SourceConfig(path=source.path, kind=kind, template=template)}, tokenizer=tokenizer_path
    )
    found = problems(config)
    assert (message in found["sources.a.template"]) if message else found == {}


def test_numbers_and_places(source: SourceConfig, tokenizer_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = problems(
        DataConfig(
            sources={"a": source}, tokenizer=tokenizer_path, workers=-1, cache_gb=0.0,
            cache_dir=tmp_path / "file", chat_template=tmp_path / "none.jinja",
        )
    )  # fmt: skip
    assert sorted(found) == ["cache_dir", "cache_gb", "chat_template", "workers"]


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


def test_paths_that_cannot_be_looked_at(source: SourceConfig, tokenizer_path: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    hidden = private / "x"
    config = DataConfig(
        sources={"a": SourceConfig(path=str(hidden)), "b": source},
        tokenizer=hidden,
        chat_template=hidden,
        cache_dir=hidden,
    )
    with locked(private):
        found = problems(config)
    assert found == dict.fromkeys(
        ("sources.a.path", "tokenizer", "chat_template", "cache_dir"), f"{hidden} can't be looked at: Permission denied"
    )
    with locked(private):
        found = problems(DataConfig(sources={"b": source}, tokenizer=tokenizer_path, cache_dir=private))
    assert found == {"cache_dir": f"{private} can't be looked at: Permission denied"}


def test_nobody_waits_for_a_fifo(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.model"):
        os.mkfifo(tmp_path / name)
    config = DataConfig(sources={"a": SourceConfig(path=f"{tmp_path}/a.jsonl")}, tokenizer=tmp_path / "a.model")
    assert problems(config) == {
        "sources.a.path": f"{tmp_path}/a.jsonl is neither a file nor a folder",
        "tokenizer": f"{tmp_path}/a.model is neither a file nor a folder",
    }
