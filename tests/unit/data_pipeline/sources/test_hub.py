"""Datasets of the `datasets` library: saved folders, folders of files, and what can go wrong without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_pipeline.config import SourceConfig
from data_pipeline.sources import hub
from data_pipeline.sources.errors import DataError

datasets = pytest.importorskip("datasets")

TEXTS = [f"text {number}" for number in range(20)]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def texts(files: list[Path]) -> list[str]:
    found: list[str] = []
    for file in files:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as batches:
            found += batches.read_all()["text"].to_pylist()
    return found


def test_a_saved_dataset_is_its_files(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    files = hub.arrow_files(SourceConfig(dataset=str(tmp_path / "saved")), tmp_path / "cache")
    assert [file.parent for file in files] == [tmp_path / "saved"] * 3
    assert texts(files) == TEXTS
    assert not (tmp_path / "cache").exists()


def test_a_saved_dataset_with_splits(tmp_path: Path) -> None:
    splits = {"train": datasets.Dataset.from_dict({"text": TEXTS}), "test": datasets.Dataset.from_dict({"text": ["t"]})}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    config = SourceConfig(dataset=str(tmp_path / "saved"), split="test")
    assert texts(hub.arrow_files(config, tmp_path / "cache")) == ["t"]
    with pytest.raises(DataError, match=r"saved has no split 'val'; it has 'train', 'test'"):
        hub.arrow_files(SourceConfig(dataset=str(tmp_path / "saved"), split="val"), tmp_path / "cache")


NAMES = ["../good.arrow", "/good.arrow", "a/../../good.arrow", "..", "", "a\0b", "\ud800", 3]
STATES = ["", "[]", "{}", '{"_data_files": [{}]}', "[" * 100_000, '{"_data_files": [3]}', "9" * 5000]


@pytest.mark.parametrize("state", [*STATES, *(json.dumps({"_data_files": [{"filename": name}]}) for name in NAMES)])
def test_a_damaged_saved_dataset_is_told(state: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"is not as save_to_disk writes it .*; save it again"):
        hub.arrow_files(SourceConfig(dataset=str(tmp_path)), None)


@pytest.mark.parametrize("split", ["../other", "..", "a\0b", "\ud800"])
def test_a_split_is_in_the_folder_of_its_dataset(split: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "saved", tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    with pytest.raises(DataError, match=r"is not as save_to_disk writes it .*; save it again"):
        hub.arrow_files(SourceConfig(dataset=str(tmp_path / "saved"), split=split), None)


def json_folder(folder: Path, found: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
    return folder


def test_a_folder_of_data_files_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SourceConfig(dataset=str(json_folder(tmp_path / "data", TEXTS)))
    files = hub.arrow_files(config, tmp_path / "cache")
    assert texts(files) == TEXTS
    assert all(tmp_path / "hf" in file.parents for file in files)
    with monkeypatch.context() as patched:
        patched.setattr(hub, "_load", lambda config: pytest.fail("the files were noted"))
        assert hub.arrow_files(config, tmp_path / "cache") == files
    # Other content, or a lost file, is another matter.
    json_folder(tmp_path / "data", TEXTS[::-1])
    changed = hub.arrow_files(config, tmp_path / "cache")
    assert texts(changed) == TEXTS[::-1]
    changed[0].write_bytes(changed[0].read_bytes()[:-8])
    monkeypatch.setattr(hub, "_load", lambda config: datasets.Dataset.from_dict({"text": ["anew"]}))
    assert texts(hub.arrow_files(config, tmp_path / "cache")) == ["anew"]


def test_what_is_not_whole_files_is_written_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    whole = datasets.load_from_disk(str(tmp_path / "saved"))
    parts = {
        "selected": whole.select([7, 3]),
        "sliced": whole.select(range(5, 9)),
        "in memory": datasets.Dataset.from_dict({"text": ["m"]}),
    }
    for name, dataset in parts.items():
        monkeypatch.setattr(hub, "_load", lambda config, dataset=dataset: dataset)
        for _ in range(2):
            files = hub.arrow_files(SourceConfig(dataset=name), tmp_path / "cache")
            assert texts(files) == dataset["text"][:]
            assert all(tmp_path / "cache" / "datasets" in file.parents for file in files)
    monkeypatch.setattr(hub, "_load", lambda config: whole)
    assert [file.parent for file in hub.arrow_files(SourceConfig(dataset="whole"), tmp_path / "cache")] == [
        tmp_path / "saved"
    ]
    assert not list((tmp_path / "cache" / "datasets").glob(".*"))


def test_a_dataset_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    config = SourceConfig(dataset="nobody/nothing-of-the-kind", subset="en", revision="v1")
    with pytest.raises(DataError) as raised:
        hub.arrow_files(config, tmp_path / "cache")
    told = str(raised.value)
    assert told.startswith(
        "dataset nobody/nothing-of-the-kind, subset 'en', split 'train', revision 'v1' cannot be loaded ("
    )
    assert told.endswith("where nodes have no internet load it once on one that has, with the same HF_HOME")


def test_an_unknown_split_or_subset_is_told_with_those_there_are(tmp_path: Path) -> None:
    data = str(json_folder(tmp_path / "data", TEXTS))
    with pytest.raises(DataError, match=r"split 'val' cannot be loaded .*Unknown split \"val\".*'train'"):
        hub.arrow_files(SourceConfig(dataset=data, split="val"), tmp_path / "cache")
    with pytest.raises(DataError, match=r"subset 'en'.* cannot be loaded .*'en' not found.*default"):
        hub.arrow_files(SourceConfig(dataset=data, subset="en"), tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setattr(hub, "_load", lambda config: datasets.Dataset.from_dict({"text": ["m"]}))
    with pytest.raises(DataError, match=r"the cache .*/cache/datasets cannot be written .*cache_dir"):
        hub.arrow_files(SourceConfig(dataset="any"), tmp_path / "cache")


def test_ranks_that_race_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = datasets.Dataset.from_dict({"text": TEXTS})
    monkeypatch.setattr(hub, "_load", lambda config: dataset)
    folder = tmp_path / "cache" / "datasets" / "key"
    first: Any = hub._written(dataset, folder)
    assert hub._written(dataset, folder) == first
    assert texts(first) == TEXTS
    assert [path.name for path in folder.parent.iterdir()] == ["key"]
