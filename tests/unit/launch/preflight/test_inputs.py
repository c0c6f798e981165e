from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from launch.preflight import inputs
from training.config import Config
from training.inputs import files_of, input_paths, named_inputs
from training.recipe import load_config


@pytest.fixture
def config(recipe: Path) -> Config:
    return load_config(recipe, ["--train.placement", "replicated"])


class TestFiles:
    def test_what_a_run_reads(self, config: Config) -> None:
        assert [setting for setting, _ in input_paths(config)] == [
            "data.sources.text.path", "data.tokenizer", "model.base", "eval.tasks.old_bits.path"]  # fmt: skip

    def test_what_else_it_can_read(self, recipe: Path, tmp_path: Path) -> None:
        more = ["--eval.data_dir", str(tmp_path), "--run.branch_from", str(tmp_path / "a"), "--adapter.init_from", str(tmp_path / "b"),
                "--data.chat_template", str(tmp_path / "c"), "--model.base", "org/base"]  # fmt: skip
        config = load_config(recipe, [*more, "--adapter.kind", "lora"], needs_files=False)
        settings = {setting for setting, _ in input_paths(config)}
        assert {"eval.data_dir", "run.branch_from", "adapter.init_from", "data.chat_template"} < settings
        assert "model.base" not in settings
        assert list(named_inputs(config)) == [("model.base", "org/base")]

    def test_data_from_elsewhere(self, config: Config) -> None:
        source = config.data.sources["text"]
        elsewhere = {
            "a": dataclasses.replace(source, path="s3://x/y"),
            "b": dataclasses.replace(source, path=None, dataset="org/set"),
        }
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=elsewhere))
        assert not any(setting.startswith("data.sources") for setting, _ in input_paths(config))
        assert list(named_inputs(config)) == [
            ("data.sources.a.path", "s3://x/y"),
            ("data.sources.b.dataset", "org/set"),
        ]
        said = inputs.look(config)
        assert inputs.judge({"n1": said}).line.endswith(
            "; not asked: data.sources.a.path (s3://x/y), data.sources.b.dataset (org/set)"
        )

    def test_the_files_of_folders(self, tmp_path: Path) -> None:
        for name in ("b.jsonl", "a.jsonl", "notes.md", "tokenizer.model", "deep/c.bin"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert [path.name for path in files_of("data.sources.x.path", tmp_path)] == ["a.jsonl", "b.jsonl"]
        assert [path.name for path in files_of("data.tokenizer", tmp_path)] == ["tokenizer.model"]
        assert len(files_of("model.base", tmp_path)) == 5
        assert files_of("model.base", tmp_path / "none") == [tmp_path / "none"]


class TestMarks:
    def test_small_files_are_read_as_a_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"x" * 20000)
        before = inputs.mark(path)
        path.write_bytes(b"x" * 10000 + b"y" + b"x" * 9999)
        after = inputs.mark(path)
        assert before[0] == after[0] == 20000
        assert before != after

    @pytest.mark.parametrize("position", [0, -1])
    def test_of_large_ones_the_ends(self, tmp_path: Path, position: int) -> None:
        path = tmp_path / "a"
        content = bytearray(inputs.WHOLE + 10)
        path.write_bytes(content)
        before = inputs.mark(path)
        content[position] = 1
        path.write_bytes(content)
        assert inputs.mark(path) != before

    def test_empty_and_missing_ones(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        assert inputs.mark(tmp_path / "a")[0] == 0
        assert inputs.mark(tmp_path / "b") == "No such file or directory"

    def test_of_many_some_are_chosen(self) -> None:
        paths = [Path(str(number)) for number in range(2500)]
        chosen = inputs.evenly(paths, 1000)
        assert len(set(chosen)) == 1000
        assert chosen[0] == paths[0]
        assert inputs.evenly(paths, 2500) == paths


def node(config: Config) -> dict[str, Any]:
    """As it comes from another node."""
    return json.loads(json.dumps(inputs.look(config)))


class TestVerdict:
    def test_the_same_on_all(self, config: Config) -> None:
        judged = inputs.judge({"n1": inputs.look(config), "n2": node(config)})
        assert judged.findings == []
        assert judged.line.startswith("5 file(s), ")
        assert judged.line.endswith(", read on 2 node(s)")

    def test_a_file_that_is_missing_there(self, config: Config, tmp_path: Path) -> None:
        here = node(config)
        (tmp_path / "train.jsonl").unlink()
        (finding,) = inputs.judge({"n1": here, "n2": node(config)}).findings
        assert (
            str(finding)
            == f"n2: data.sources.text.path: {tmp_path}/train.jsonl can't be read: No such file or directory"
        )

    def test_a_file_that_is_another_there(self, config: Config, tmp_path: Path) -> None:
        here = node(config)
        (tmp_path / "tokenizer.model").write_bytes(b"another")
        (finding,) = inputs.judge({"n1": here, "n2": node(config)}).findings
        assert str(finding) == f"n2: data.tokenizer: {tmp_path}/tokenizer.model is not what it is on n1"

    def test_another_number_of_files(self, config: Config, tmp_path: Path) -> None:
        here = node(config)
        for number in range(4):
            (tmp_path / "base" / f"{number}.json").touch()
        (finding,) = inputs.judge({"n1": here, "n2": node(config)}).findings
        assert str(finding) == "n2: model.base: 6 file(s), and 2 on n1"

    def test_the_first_node_may_be_the_odd_one(self, config: Config, tmp_path: Path) -> None:
        (tmp_path / "base" / "more.json").touch()
        (tmp_path / "tokenizer.model").write_bytes(b"stale")
        first = node(config)
        (tmp_path / "base" / "more.json").unlink()
        (tmp_path / "tokenizer.model").write_bytes(b"new")
        others = {name: node(config) for name in ("n2", "n3", "n4")}
        assert sorted(map(str, inputs.judge({"n1": first} | others).findings)) == [
            f"n1: data.tokenizer: {tmp_path}/tokenizer.model is not what it is on the other 3 nodes",
            "n1: model.base: 3 file(s), and 2 on the other 3 nodes",
        ]

    def test_of_every_file_most_nodes_decide(self, config: Config, tmp_path: Path) -> None:
        whole = node(config)
        (tmp_path / "tokenizer.model").unlink()
        without = node(config)
        (tmp_path / "tokenizer.model").write_bytes(b"another")
        other = node(config)
        found = inputs.judge({"n1": without, "n2": other, "n3": whole, "n4": whole}).findings
        assert [str(finding) for finding in found] == [
            f"n1: data.tokenizer: {tmp_path}/tokenizer.model can't be read: No such file or directory",
            f"n2: data.tokenizer: {tmp_path}/tokenizer.model is not what it is on the other 2 nodes",
        ]

    def test_a_file_that_no_node_can_read(self, config: Config, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").unlink()
        found = inputs.judge({"n1": node(config), "n2": node(config)}).findings
        assert [finding.node for finding in found] == ["n1", "n2"]

    def test_only_some_files_are_named(self, config: Config, tmp_path: Path) -> None:
        for number in range(5):
            (tmp_path / "base" / f"{number}.json").write_text("here")
        here = node(config)
        for number in range(5):
            (tmp_path / "base" / f"{number}.json").write_text("there")
        (finding,) = inputs.judge({"n1": here, "n2": node(config)}).findings
        assert str(finding).startswith(f"n2: model.base: {tmp_path}/base/0.json, ")
        assert " and 2 more is not what it is on n1" in str(finding)

    def test_a_folder_that_can_not_be_listed(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(setting: str, path: Path) -> list[Path]:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(inputs, "files_of", refuse)
        findings = inputs.judge({"n1": inputs.look(config)}).findings
        assert str(findings[0]).startswith("n1: data.sources.text.path: ")
        assert str(findings[0]).endswith("train.jsonl: Permission denied")

    def test_a_base_that_is_not_in_the_cache(self, recipe: Path) -> None:
        config = load_config(
            recipe, ["--train.placement", "replicated", "--model.base", "nobody/nothing"], needs_files=False
        )
        (finding,) = inputs.judge({"n1": inputs.look(config)}).findings
        assert finding.level == "warn"
        assert str(finding).startswith(
            "n1: model.base = nobody/nothing is not in its cache of the hub; without internet, download"
        )

    def test_a_cache_that_can_not_be_written(
        self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "cache" / "deep"
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=folder))
        assert inputs.look(config)["cache"] is None
        monkeypatch.setattr(inputs.os, "access", lambda path, mode: path != tmp_path)
        (finding,) = inputs.judge({"n1": inputs.look(config)}).findings
        assert (finding.level, str(finding)) == ("warn", f"n1: data.cache_dir = {folder} can't be written")
