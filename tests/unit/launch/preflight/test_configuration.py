from __future__ import annotations

from pathlib import Path

import pytest

from launch.preflight import configuration

DS_CONFIG = Path(__file__).resolve().parents[4] / "ds_configs" / "zero3.json"


class TestReading:
    def test_a_good_one(self, recipe: Path) -> None:
        own = configuration.read(recipe, DS_CONFIG, [], 4)
        assert own.problems == []
        assert own.config is not None
        assert own.ds_config["zero_optimization"]["stage"] == 3

    def test_without_a_file_it_is_still_read(self, recipe: Path) -> None:
        (recipe.parent / "train.jsonl").unlink()
        own = configuration.read(recipe, None, [], 4)
        assert own.config is not None
        assert len(own.problems) == 1
        assert "train.jsonl does not exist" in own.problems[0]

    def test_a_wrong_one(self, recipe: Path, tmp_path: Path) -> None:
        own = configuration.read(recipe, tmp_path / "none.json", ["--optim.lr", "-1"], 5)
        assert own.config is None
        assert len(own.problems) == 3


class TestWhoseFault:
    @pytest.mark.parametrize(
        ("problems", "is_wrong"),
        [
            ({0: ["a"], 1: ["a"]}, True),
            ({0: [], 1: []}, False),
            ({0: ["a"], 1: []}, False),
            ({0: ["a"], 1: ["b"]}, False),
        ],
    )
    def test_what_is_wrong_everywhere_is_wrong(self, problems: dict[int, list[str]], is_wrong: bool) -> None:
        assert configuration.is_wrong(problems) == is_wrong

    def test_what_is_wrong_on_a_node_is_its(self) -> None:
        judged = configuration.judge({"n1": [], "n2": ["data.tokenizer: /x does not exist"]})
        assert [str(f) for f in judged.findings] == ["n2: data.tokenizer: /x does not exist"]
        assert judged.line == "read on 1 of 2 node(s)"


class TestSizes:
    def test_as_the_plan_has_them(self, recipe: Path) -> None:
        own = configuration.read(recipe, None, ["--model.base", "none"], 4)
        assert own.config is not None
        sizes = configuration.sizes_of(own, 4, 2)
        trained = sum(own.config.model.architecture.shape().parameters().values())
        # Masters and two states of AdamW.
        assert sizes.checkpoint_bytes == 12 * trained
        assert sizes.copy_bytes == 3 * trained

    def test_of_a_base_that_is_not_here(self, recipe: Path) -> None:
        own = configuration.read(recipe, None, ["--model.base", "org/base"], 4)
        assert configuration.sizes_of(own, 4, 2).unknown == "org/base has no config.json that can be read"

    def test_without_a_recipe(self, tmp_path: Path) -> None:
        own = configuration.read(tmp_path / "none.toml", None, [], 4)
        assert configuration.sizes_of(own, 4, 2).unknown == "the recipe can't be read"
