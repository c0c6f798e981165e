from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training.minimal import RECIPE, problems_of, write_adapter, write_base, write_inputs, write_recipe
from training.checkpoint.retention import retention_of
from training.config import Config, OptimConfig, to_dict
from training.length import resolve
from training.origin import BRANCH_KEEPS, BRANCH_MAY_CHANGE
from training.recipe import ConfigError, all_paths, find_leaf, load_config
from training.record.run_record import differences
from training.schedule import lr_factor

ROOT = Path(__file__).resolve().parents[3]
RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.toml")) if "data" in tomllib.loads(path.read_text())]


def only_problem(folder: Path, *overrides: str, more: str = "", text: str = RECIPE) -> str:
    """The one problem of the minimal recipe with something added."""
    path = write_recipe(folder, text, more)
    (problem,) = problems_of(path, *overrides)
    return problem.replace(str(path), "RECIPE")


def test_a_minimal_recipe_is_read(recipe: Path) -> None:
    config = load_config(recipe)
    assert config.train.steps == 20
    assert config.optim == OptimConfig(lr=5e-3)
    assert config.data.sources["text"].path == str(recipe.parent / "train.jsonl")
    assert config.eval.tasks["old_bits"].domain == "old"
    assert config.model.base == str(recipe.parent / "base")
    assert config.run.dir == recipe.parent / "out"


class TestTheFile:
    def test_it_is_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "none.toml"
        assert problems_of(path) == [f"--recipe {path}: no such file"]

    def test_when_it_is_missing_the_command_line_is_still_checked(self, tmp_path: Path) -> None:
        path = tmp_path / "none.toml"
        assert problems_of(path, "--train.stepz", "3") == [
            f"--recipe {path}: no such file",
            "--train.stepz (command line): unknown setting; did you mean train.steps?",
        ]

    def test_it_is_a_folder(self, tmp_path: Path) -> None:
        (problem,) = problems_of(tmp_path)
        assert problem.startswith(f"--recipe {tmp_path}: can't be read: ")

    def test_it_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "r.toml"
        path.write_bytes(b"\xff\xfe\x00")
        (problem,) = problems_of(path)
        assert problem.startswith(f"--recipe {path}: can't be read: ")

    def test_it_is_no_toml(self, tmp_path: Path) -> None:
        path = tmp_path / "r.toml"
        path.write_text("[run]\nseed = \n")
        (problem,) = problems_of(path)
        assert problem.startswith(f"--recipe {path}: not valid TOML: ")
        assert "line 2" in problem

    @pytest.mark.parametrize("value", ["[" * 5000, "2020-02-30", "9" * 5000])
    def test_it_is_toml_that_python_gives_up_on(self, tmp_path: Path, value: str) -> None:
        path = tmp_path / "r.toml"
        path.write_text(f"[run]\nseed = {value}\n")
        (problem,) = problems_of(path)
        assert problem.startswith(f"--recipe {path}: not valid TOML: ")


class TestUnknownSettings:
    @pytest.mark.parametrize(
        ("text", "name", "suggestion"),
        [
            ("[optim]\nbeta = 0.9\n", "optim.beta", "; did you mean optim.beta2?"),
            ("[optimizer]\nlr = 1e-3\n", "optimizer", "; did you mean optim?"),
            ("[train]\nlr = 1e-3\n", "train.lr", "; did you mean optim.lr?"),
            ("[model.architecture]\nhidden = 8\n", "model.architecture.hidden", "; did you mean model.architecture.hidden_size?"),
            ("[model.arquitecture]\nhidden_size = 8\n", "model.arquitecture", "; did you mean model.architecture?"),
            ("steps = 3\n", "steps", "; did you mean train.steps?"),
            ("[nonsense]\nxyzzy = 1\n", "nonsense", ""),
        ],
    )  # fmt: skip
    def test_in_the_recipe(self, tmp_path: Path, text: str, name: str, suggestion: str) -> None:
        path = write_recipe(tmp_path, text)
        found = [problem for problem in problems_of(path) if "unknown" in problem]
        assert found == [f"{name} ({path}): unknown setting{suggestion}"]

    def test_in_a_named_table_of_the_recipe(self, tmp_path: Path) -> None:
        problem = only_problem(tmp_path, more="max_exampels = 3\n")
        assert problem == (
            "eval.tasks.old_bits.max_exampels (RECIPE): unknown setting; did you mean eval.tasks.old_bits.max_examples?"
        )

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("--optim.lrr", "--optim.lrr (command line): unknown setting; did you mean optim.lr?"),
            ("--train.lr", "--train.lr (command line): unknown setting; did you mean optim.lr?"),
            ("--lr", "--lr (command line): unknown setting; did you mean optim.lr?"),
            ("--optim", "--optim (command line): unknown setting"),
            ("--data.sources", "--data.sources (command line): unknown setting"),
            ("--data.sources.text", "--data.sources.text (command line): unknown setting"),
            ("--optim.lr.peak", "--optim.lr.peak (command line): unknown setting"),
        ],
    )
    def test_on_the_command_line(self, recipe: Path, argument: str, message: str) -> None:
        for arguments in ((argument, "1"), (f"{argument}=1",)):
            (problem,) = problems_of(recipe, *arguments)
            assert problem.startswith(message)

    def test_an_unknown_settings_value_is_not_taken_for_a_setting(self, recipe: Path) -> None:
        found = problems_of(recipe, "--nope", "-1", "--optim.lr", "1e-4", "--neither", "--optim.eps", "1e-9")
        assert [problem.split(" ")[0] for problem in found] == ["--nope", "--neither"]


class TestTypes:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("train.steps", "1.5", "train.steps = 1.5 (RECIPE): must be a whole number, not a number"),
            ("train.steps", '"x"', 'train.steps = "x" (RECIPE): must be a whole number, not a string'),
            ("train.steps", "true", "train.steps = true (RECIPE): must be a whole number, not true or false"),
            ("train.steps", "[1]", "train.steps = [1] (RECIPE): must be a whole number, not a list"),
            ("train.steps", "{a = 1}", "train.steps = {'a': 1} (RECIPE): must be a whole number, not a table"),
            ("optim.eps", '"1e-8"', 'optim.eps = "1e-8" (RECIPE): must be a number, not a string'),
            ("optim.eps", "true", "optim.eps = true (RECIPE): must be a number, not true or false"),
            ("optim.eps", "nan", "optim.eps = nan (RECIPE): must be a finite number"),
            ("optim.eps", "inf", "optim.eps = inf (RECIPE): must be a finite number"),
            ("checkpoint.export", "1", "checkpoint.export = 1 (RECIPE): must be true or false, not a whole number"),
            ("checkpoint.export", '"true"', 'checkpoint.export = "true" (RECIPE): must be true or false, not a string'),
            ("run.dir", "3", "run.dir = 3 (RECIPE): must be a string, not a whole number"),
            ("model.base", "3", "model.base = 3 (RECIPE): must be a string, not a whole number"),
            (
                "optim.schedule", '"cosin"',
                'optim.schedule = "cosin" (RECIPE): must be one of constant, linear, cosine, trapezoid, inverse_sqrt; did you mean cosine?',
            ),
            (
                "optim.schedule", "1",
                "optim.schedule = 1 (RECIPE): must be one of constant, linear, cosine, trapezoid, inverse_sqrt",
            ),
            ("adapter.targets", '"q_proj"', 'adapter.targets = "q_proj" (RECIPE): must be a list of strings'),
            ("adapter.targets", "[1, 2]", "adapter.targets = [1, 2] (RECIPE): must be a list of strings"),
        ],
    )  # fmt: skip
    def test_a_value_of_another_type(self, tmp_path: Path, name: str, value: str, message: str) -> None:
        section, _, key = name.partition(".")
        text = re.sub(rf"^{key} = .*\n", "", RECIPE, flags=re.M) if section in ("run", "model", "train") else RECIPE
        marker = f"[{section}]\n"
        text = (
            text.replace(marker, f"{marker}{key} = {value}\n") if marker in text else f"{text}{marker}{key} = {value}\n"
        )
        assert only_problem(tmp_path, text=text) == message

    def test_a_number_may_be_written_whole(self, tmp_path: Path) -> None:
        config = load_config(write_recipe(tmp_path, more="[adapter]\nalpha = 8\n"))
        assert type(config.adapter.alpha) is float
        assert config.adapter.alpha == 8

    @pytest.mark.parametrize(
        "written",
        [
            '[adapter]\nrank_pattern = {"*.mlp.*" = 4, q_proj = 2}\n',
            '[adapter.rank_pattern]\n"*.mlp.*" = 4\nq_proj = 2\n',
        ],
    )
    def test_a_table_of_numbers_keeps_its_order(self, tmp_path: Path, written: str) -> None:
        config = load_config(write_recipe(tmp_path, more=written))
        assert list(config.adapter.rank_pattern.items()) == [("*.mlp.*", 4), ("q_proj", 2)]
        assert config.adapter.alpha_pattern == {}

    def test_whole_numbers_of_a_table_of_numbers_become_floats(self, tmp_path: Path) -> None:
        config = load_config(write_recipe(tmp_path, more="[adapter]\nalpha_pattern = {q_proj = 2}\n"))
        assert [(name, type(value)) for name, value in config.adapter.alpha_pattern.items()] == [("q_proj", float)]

    @pytest.mark.parametrize(
        ("written", "message"),
        [
            ("rank_pattern = 3", 'adapter.rank_pattern = 3 (RECIPE): must be a table such as {"*.mlp.*" = 64}'),
            (
                "rank_pattern = {q_proj = 1.5}",
                "adapter.rank_pattern = {'q_proj': 1.5} (RECIPE): q_proj: must be a whole number, not a number",
            ),
            (
                "rank_pattern = {q_proj = true}",
                "adapter.rank_pattern = {'q_proj': True} (RECIPE): q_proj: must be a whole number, not true or false",
            ),
            (
                "alpha_pattern = {q_proj = nan}",
                "adapter.alpha_pattern = {'q_proj': nan} (RECIPE): q_proj: must be a finite number",
            ),
            (
                "alpha_pattern = {layers.mlp = 1}",
                "adapter.alpha_pattern = {'layers': {'mlp': 1}} (RECIPE): must be a table such as {\"*.mlp.*\" = 64.0}: "
                "put layers and what follows it in quotes",
            ),
        ],
    )
    def test_a_wrong_table_of_numbers(self, tmp_path: Path, written: str, message: str) -> None:
        assert only_problem(tmp_path, more=f"[adapter]\n{written}\n") == message

    def test_a_value_of_a_table_out_of_range_is_named_by_its_key(self, tmp_path: Path) -> None:
        problem = only_problem(tmp_path, more='[adapter]\nrank_pattern = {"*.mlp.*" = 0}\n')
        assert problem.startswith("adapter.rank_pattern.*.mlp.* (RECIPE): is 0; ")
        problem = only_problem(tmp_path, "--adapter.rank_pattern", "{q_proj = 0}")
        assert problem.startswith("adapter.rank_pattern.q_proj (command line): is 0; ")

    @pytest.mark.parametrize(
        ("more", "problem"),
        [
            ('rank = "4"', 'adapter.rank = "4" (RECIPE): must be a whole number, not a string'),
            (
                "rank = 7\nrank_pattern = 3",
                'adapter.rank_pattern = 3 (RECIPE): must be a table such as {"*.mlp.*" = 64}',
            ),
            ('targets = "q_proj"', 'adapter.targets = "q_proj" (RECIPE): must be a list of strings'),
        ],
    )
    def test_what_a_default_in_its_place_would_ask_of_the_model_is_no_second_problem(
        self, tmp_path: Path, more: str, problem: str
    ) -> None:
        path = write_recipe(tmp_path, more=f'[adapter]\nkind = "lora"\ninit_from = "adapter"\n{more}\n')
        write_adapter(tmp_path / "adapter", r=4)
        shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 40}
        write_base(tmp_path / "base", model_type="llama", num_attention_heads=2, **shape)
        assert [text.replace(str(path), "RECIPE") for text in problems_of(path)] == [problem]

    def test_a_default_in_its_place_is_not_judged(self, tmp_path: Path) -> None:
        text = RECIPE.replace('path = "train.jsonl"', "path = 3")
        assert only_problem(tmp_path, text=text).startswith("data.sources.text.path = 3 (RECIPE): must be a string")
        text = RECIPE.replace("steps = 20", 'steps = "x"')
        found = problems_of(write_recipe(tmp_path, text), "--train.steps", "0")
        assert found[1:] == ["train.steps = 0 (command line): must be at least 1"]

    def test_a_list_of_strings_becomes_a_tuple(self, tmp_path: Path) -> None:
        config = load_config(write_recipe(tmp_path, more='[adapter]\ntargets = ["a", "b"]\n'))
        assert config.adapter.targets == ("a", "b")

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("train.steps", "1.5", 'train.steps = "1.5" (command line): must be a whole number, not a string'),
            ("train.steps", "true", 'train.steps = "true" (command line): must be a whole number, not a string'),
            ("optim.lr", "fast", 'optim.lr = "fast" (command line): must be a number, not a string'),
            ("optim.lr", "nan", 'optim.lr = "nan" (command line): must be a finite number'),
            ("checkpoint.export", "yes", 'checkpoint.export = "yes" (command line): must be true or false, not a string'),
            (
                "adapter.kind", "lorra",
                'adapter.kind = "lorra" (command line): must be one of none, lora, monteclora; did you mean lora?',
            ),
            ("train.steps", "none", 'train.steps = "none" (command line): must be a whole number, not a string'),
            ("optim.lr", "-1", "optim.lr = -1.0 (command line): must be greater than 0"),
            ("optim.lr", "-1e-4", "optim.lr = -0.0001 (command line): must be greater than 0"),
            ("train.steps", "-3", "train.steps = -3 (command line): must be at least 1"),
        ],
    )  # fmt: skip
    def test_a_wrong_value_on_the_command_line(self, recipe: Path, name: str, text: str, message: str) -> None:
        for arguments in ((f"--{name}", text), (f"--{name}={text}",)):
            assert problems_of(recipe, *arguments) == [message]


class TestSections:
    def test_a_section_given_as_a_value(self, tmp_path: Path) -> None:
        text = RECIPE.replace("[optim]\nlr = 5e-3\n", "")
        assert only_problem(tmp_path, text=f"optim = 3\n{text}") == "optim = 3 (RECIPE): is a section: write [optim]"

    def test_a_named_table_given_as_a_value(self, tmp_path: Path) -> None:
        text = RECIPE.split("[eval")[0] + "[eval]\ntasks = 3\n"
        assert only_problem(tmp_path, text=text) == "eval.tasks = 3 (RECIPE): is a section: write [eval.tasks]"

    def test_an_entry_given_as_a_value(self, tmp_path: Path) -> None:
        text = RECIPE.split("[eval")[0] + "[eval.tasks]\nbits = 3\n"
        assert (
            only_problem(tmp_path, text=text) == "eval.tasks.bits = 3 (RECIPE): is a section: write [eval.tasks.bits]"
        )

    def test_a_value_given_as_a_section(self, tmp_path: Path) -> None:
        problem = only_problem(tmp_path, more="[optim.eps]\nx = 1\n")
        assert problem == "optim.eps = {'x': 1} (RECIPE): must be a number, not a table"

    def test_a_required_value_is_missing(self, tmp_path: Path) -> None:
        text = RECIPE.replace('tokenizer = "tokenizer.model"\n', "")
        assert (
            only_problem(tmp_path, text=text) == "data.tokenizer: is missing and has no default; set it in the recipe"
        )

    def test_a_required_value_of_the_wrong_type_is_one_problem(self, tmp_path: Path) -> None:
        text = RECIPE.replace('tokenizer = "tokenizer.model"', "tokenizer = 1")
        assert only_problem(tmp_path, text=text) == "data.tokenizer = 1 (RECIPE): must be a string, not a whole number"

    def test_no_sources(self, tmp_path: Path) -> None:
        text = RECIPE.replace('[data.sources.text]\npath = "train.jsonl"\n', "")
        assert only_problem(tmp_path, text=text) == "data.sources: is empty; add at least one [data.sources.NAME]"

    def test_an_entry_that_says_nothing_is_not_dropped(self, tmp_path: Path) -> None:
        problem = only_problem(tmp_path, more="[data.sources.more]\n")
        assert problem.startswith("data.sources.more.path (default): name either path (files) or dataset")

    def test_no_tasks_are_fine(self, tmp_path: Path) -> None:
        assert load_config(write_recipe(tmp_path, RECIPE.split("[eval")[0])).eval.tasks == {}

    def test_a_dot_in_a_name_would_look_like_a_section(self, tmp_path: Path) -> None:
        problem = only_problem(tmp_path, more='[data.sources."a.b"]\npath = "train.jsonl"\n')
        assert problem == 'data.sources."a.b" (RECIPE): a name must not contain a dot'

    def test_sources_keep_their_order(self, tmp_path: Path) -> None:
        more = "".join(f'[data.sources.{name}]\npath = "train.jsonl"\n' for name in ("zebra", "ant"))
        config = load_config(
            write_recipe(tmp_path, more=more), ["--data.sources.bee.path", str(tmp_path / "train.jsonl")]
        )
        assert list(config.data.sources) == ["text", "zebra", "ant", "bee"]


class TestOverrides:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("--train.micro_batch_rows", "4"), ("--train.micro_batch_rows=4",), ("--train.micro-batch-rows", "4"),
            ("--train.micro-batch-rows=4",), ("--train.micro_batch_rows", "3", "--train.micro_batch_rows", "4"),
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_ways_to_write_one(self, recipe: Path, arguments: tuple[str, ...]) -> None:
        assert load_config(recipe, arguments).train.micro_batch_rows == 4

    def test_it_wins_over_the_recipe(self, recipe: Path) -> None:
        assert load_config(recipe, ["--optim.lr", "2"]).optim.lr == 2.0

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("--monitor.tensorboard",), True), (("--monitor.tensorboard", "true"), True), (("--monitor.tensorboard", "False"), False),
            (("--monitor.tensorboard=TRUE",), True), (("--monitor.tensorboard", "--train.steps", "3"), True),
            (("--data.token-cache", "--monitor.tensorboard"), True),
        ],
    )  # fmt: skip
    def test_truth_values(self, recipe: Path, arguments: tuple[str, ...], expected: bool) -> None:
        assert load_config(recipe, arguments).monitor.tensorboard is expected

    def test_none_unsets_an_optional_value(self, recipe: Path) -> None:
        assert load_config(recipe, ["--model.base", "none"]).model.base is None

    def test_none_is_a_kind_of_adapter_all_the_same(self, recipe: Path) -> None:
        assert load_config(recipe, ["--adapter.kind", "none"]).adapter.kind == "none"

    def test_lists_are_separated_by_commas(self, recipe: Path) -> None:
        assert load_config(recipe, ["--adapter.targets", "a_proj, b_proj,"]).adapter.targets == ("a_proj", "b_proj")

    def test_a_table_is_written_as_in_a_recipe(self, recipe: Path) -> None:
        for arguments in (("--adapter.rank_pattern", '{"*.mlp.*" = 4}'), ('--adapter.rank-pattern={"*.mlp.*"=4}',)):
            assert load_config(recipe, arguments).adapter.rank_pattern == {"*.mlp.*": 4}
        written = write_recipe(recipe.parent, more="[adapter]\nrank_pattern = {q_proj = 4}\n")
        assert load_config(written, ["--adapter.rank_pattern", "{}"]).adapter.rank_pattern == {}

    @pytest.mark.parametrize("text", ["q_proj=4", "{q_proj: 4}", "4", "none"])
    def test_a_text_that_is_no_table(self, recipe: Path, text: str) -> None:
        (problem,) = problems_of(recipe, "--adapter.rank_pattern", text)
        assert problem.startswith("adapter.rank_pattern")
        assert '(command line): must be a table such as {"*.mlp.*" = 64}' in problem

    def test_an_adapter_to_start_with_is_a_path(self, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_adapter(recipe.parent / "adapter")
        monkeypatch.chdir(recipe.parent)
        config = load_config(recipe, ["--adapter.kind", "lora", "--adapter.init_from", "adapter"])
        assert config.adapter.init_from == recipe.parent / "adapter"
        assert load_config(recipe, ["--adapter.init_from", "none"]).adapter.init_from is None

    def test_a_value_may_contain_an_equals_sign(self, recipe: Path) -> None:
        assert load_config(recipe, ["--data.sources.text.text-field=a=b"]).data.sources["text"].text_field == "a=b"

    def test_a_dash_in_a_source_s_name_stays(self, tmp_path: Path) -> None:
        path = write_recipe(tmp_path, more='[data.sources.my-code]\npath = "train.jsonl"\n')
        config = load_config(path, ["--data.sources.my-code.text-field", "body"])
        assert config.data.sources["my-code"].text_field == "body"
        assert config.data.sources["text"].text_field == "text"

    def test_a_new_task_may_be_described_on_the_command_line(self, recipe: Path) -> None:
        heldout = str(recipe.parent / "heldout.jsonl")
        values = {"kind": "bits_per_byte", "domain": "new", "path": heldout}
        config = load_config(recipe, [f"--eval.tasks.x.{name}={value}" for name, value in values.items()])
        assert list(config.eval.tasks) == ["old_bits", "x"]
        assert config.eval.tasks["x"].domain == "new"

    def test_a_mistyped_name_of_a_task_shows_as_a_task_that_lacks_things(self, recipe: Path) -> None:
        found = problems_of(recipe, "--eval.tasks.old_bit.seed", "3")
        assert found == [
            f"eval.tasks.old_bit.{name}: is missing and has no default; set it in the recipe"
            for name in ("kind", "path", "domain")
        ]

    @pytest.mark.parametrize("stray", ["5", "train.steps", "-x", ""])
    def test_a_stray_argument(self, recipe: Path, stray: str) -> None:
        found = problems_of(recipe, "--train.steps", "5", stray)
        assert found == [f"command line: {stray!r} is no setting; write --section.name value"]

    def test_a_missing_value(self, recipe: Path) -> None:
        assert problems_of(recipe, "--optim.lr") == ["--optim.lr (command line): needs a value"]
        assert problems_of(recipe, "--optim.lr", "--train.steps", "3") == ["--optim.lr (command line): needs a value"]

    @given(value=st.floats(1e-30, 1e30), steps=st.integers(1, 10**12))
    def test_numbers_are_read_as_python_writes_them(self, value: float, steps: int) -> None:
        # No recipe: what is required is missing, and that is all that is wrong.
        expected = {"data.sources", "data.tokenizer"}
        overrides = [f"--optim.lr={value!r}", "--train.steps", str(steps)]
        assert {problem.split(":")[0] for problem in problems_of(None, *overrides)} == expected


class TestPaths:
    def test_those_of_a_recipe_are_relative_to_its_folder(
        self, recipe: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert load_config(recipe).data.tokenizer == recipe.parent / "tokenizer.model"

    def test_those_of_the_command_line_are_relative_to_the_working_directory(
        self, recipe: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = tmp_path_factory.mktemp("here")
        (here / "other.model").write_bytes(b"")
        write_base(here / "base2")
        monkeypatch.chdir(here)
        config = load_config(recipe, ["--data.tokenizer", "other.model", "--run.dir", "r", "--model.base", "./base2"])
        assert config.data.tokenizer == here / "other.model"
        assert config.run.dir == here / "r"
        assert config.model.base == str(here / "base2")

    def test_a_recipe_given_relatively(self, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(recipe.parent)
        assert load_config(Path(recipe.name)).data.tokenizer == recipe.parent / "tokenizer.model"

    def test_dots_are_resolved(self, tmp_path: Path) -> None:
        path = write_recipe(tmp_path, RECIPE.replace('"out"', '"../a/./b/../out"'))
        assert load_config(path).run.dir == tmp_path.parent / "a" / "out"

    def test_urls_and_dataset_names_stay_as_they_are(self, tmp_path: Path) -> None:
        more = '[data.sources.far]\npath = "s3://bucket/$SHARD/a.jsonl"\n[data.sources.hub]\ndataset = "owner/name"\n'
        more += f'[data.sources.saved]\ndataset = "./saved"\n[data.sources.here]\npath = "owner/{"x" * 3}"\n'
        (tmp_path / "owner").mkdir()
        (tmp_path / "owner" / "xxx").mkdir()
        (tmp_path / "owner" / "xxx" / "a.jsonl").touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHARD", "7")
            sources = load_config(write_recipe(tmp_path, RECIPE + more)).data.sources
        assert sources["far"].path == "s3://bucket/7/a.jsonl"
        # The folder owner/ exists, so this is meant as a path.
        assert sources["hub"].dataset == str(tmp_path / "owner" / "name")
        assert sources["saved"].dataset == str(tmp_path / "saved")
        assert sources["here"].path == str(tmp_path / "owner" / "xxx")

    def test_home_and_variables_are_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("SCRATCH_FOLDER", str(tmp_path))
        text = RECIPE.replace('"tokenizer.model"', '"~/tokenizer.model"').replace('"out"', '"${SCRATCH_FOLDER}/runs"')
        config = load_config(write_recipe(tmp_path, text), ["--data.sources.text.path", "$SCRATCH_FOLDER/train.jsonl"])
        assert config.data.tokenizer == tmp_path / "tokenizer.model"
        assert config.run.dir == tmp_path / "runs"
        assert config.data.sources["text"].path == str(tmp_path / "train.jsonl")

    @pytest.mark.parametrize("written", ["$NOT_SET_ANYWHERE/runs", "${NOT_SET_ANYWHERE}/runs"])
    def test_an_unset_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
        monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
        problem = only_problem(tmp_path, text=RECIPE.replace('"out"', f'"{written}"'))
        assert problem == f'run.dir = "{written}" (RECIPE): the environment variable NOT_SET_ANYWHERE is not set'

    def test_an_unset_variable_where_no_files_are_needed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
        text = RECIPE.replace('"out"', '"$NOT_SET_ANYWHERE/runs"')
        text = text.replace('"tokenizer.model"', '"${NOT_SET_ANYWHERE}/a"')
        more = ["--data.sources.text.path", "$NOT_SET_ANYWHERE/b"]
        config = load_config(write_recipe(tmp_path, text), more, needs_files=False)
        assert config.run.dir.parts[-2:] == ("$NOT_SET_ANYWHERE", "runs")
        assert config.data.tokenizer == Path("${NOT_SET_ANYWHERE}/a")
        assert config.data.sources["text"].path == "$NOT_SET_ANYWHERE/b"
        assert load_config(write_recipe(tmp_path), needs_files=False).run.dir == tmp_path / "out"

    @pytest.mark.parametrize("name", ["somebody/a-model", "gpt2"])
    def test_a_base_that_is_no_folder_is_a_hub_name(self, tmp_path: Path, name: str) -> None:
        assert load_config(write_recipe(tmp_path, RECIPE.replace('"base"', f'"{name}"'))).model.base == name

    @pytest.mark.parametrize("written", ["./none", "../none", "~/none", "/none/at/all"])
    def test_a_base_written_like_a_path_must_exist(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        problem = only_problem(tmp_path, text=RECIPE.replace('"base"', f'"{written}"'))
        assert problem.startswith('model.base = "/')
        assert problem.endswith("(RECIPE): no such model folder")

    @pytest.mark.parametrize("base", ["runs/demo/bse/export", "./bse", "base/export"])
    def test_a_mistyped_base_folder_is_no_hub_name(self, tmp_path: Path, base: str) -> None:
        (tmp_path / "base").mkdir(exist_ok=True)
        text = RECIPE.replace('base = "base"', f'base = "{base}"')
        assert text != RECIPE
        (problem,) = problems_of(write_recipe(tmp_path, text))
        assert problem.startswith(("model.base = ", "model.base ("))
        assert "no such model folder" in problem or "no config.json" in problem

    def test_a_missing_file_is_shown_with_its_whole_path(self, tmp_path: Path) -> None:
        problem = only_problem(tmp_path, text=RECIPE.replace('"train.jsonl"', '"none.jsonl"'))
        assert problem.startswith(f"data.sources.text.path (RECIPE): {tmp_path}/none.jsonl does not exist")

    def test_a_value_that_the_message_names_is_not_shown_twice(self, tmp_path: Path) -> None:
        assert only_problem(tmp_path, "--adapter.rank", "0").startswith("adapter.rank (command line): is 0; ")
        assert only_problem(tmp_path, "--optim.lr", "0").startswith("optim.lr = 0.0 (command line): must be greater")


class TestRunDirectory:
    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("{adapter.kind}-lr{optim.lr}-seed{run.seed}", "lora-lr0.0002-seed9"),
            ("{monitor.tensorboard}", "True"),
            ("{eval.tasks.old_bits.domain}", "old"),
            ("a{b", "a{b"), ("a{}b", "a{}b"), ("a{b c}d", "a{b c}d"), ("100%{train.steps}", "100%20"),
        ],
    )  # fmt: skip
    def test_settings_in_braces_are_filled_in(self, tmp_path: Path, written: str, expected: str) -> None:
        path = write_recipe(tmp_path, RECIPE.replace('"out"', f'"{written}"'))
        config = load_config(path, ["--adapter.kind", "lora", "--optim.lr", "2e-4", "--run.seed", "9"])
        assert config.run.dir == tmp_path / expected

    def test_a_slash_in_a_value_makes_no_folder(self, tmp_path: Path) -> None:
        text = RECIPE.replace('"out"', '"{model.base}"').replace('"base"', '"somebody/a-model"')
        assert load_config(write_recipe(tmp_path, text)).run.dir == tmp_path / "somebody_a-model"

    def test_without_one_it_is_named_after_the_adapter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        text = RECIPE.replace('dir = "out"\n', "")
        assert load_config(write_recipe(tmp_path, text)).run.dir == tmp_path / "runs" / "none"

    @pytest.mark.parametrize("name", ["optim.lrr", "optim", "nothing", "data.sources", "adapter.targets", "optim.lr.x"])
    def test_a_name_that_is_no_setting_with_a_value(self, tmp_path: Path, name: str) -> None:
        problem = only_problem(tmp_path, text=RECIPE.replace('"out"', f'"x-{{{name}}}"'))
        assert problem == f'run.dir = "{tmp_path}/x-{{{name}}}" (RECIPE): {{{name}}} is no setting with a value'

    def test_a_setting_without_a_value(self, tmp_path: Path) -> None:
        text = RECIPE.replace('"out"', '"x-{model.base}"').replace('base = "base"', "")
        assert "{model.base} is no setting with a value" in only_problem(tmp_path, text=text)


class TestAllAtOnce:
    def test_file_and_command_line_and_ranges_and_files(self, tmp_path: Path) -> None:
        text = (
            RECIPE.replace("steps = 20", "steps = 1.5")
            .replace("[optim]", "[optim]\nbeta = 1")
            .replace('"train.jsonl"', '"none.jsonl"')
        )
        path = write_recipe(tmp_path, text)
        with pytest.raises(ConfigError) as caught:
            load_config(
                path,
                ["--optim.lr", "-1", "--adapter.kind", "x", "--seed", "3", "extra"],
                world_size=5,
                more_problems=["--ds_config zero.json: no such file"],
            )
        found = [problem.replace(str(path), "RECIPE") for problem in caught.value.problems]
        expected = (
            "--ds_config zero.json: no such file",
            "train.steps = 1.5 (RECIPE): must be",
            "optim.beta (RECIPE): unknown setting",
            'adapter.kind = "x" (command line): must be one of',
            "--seed (command line): unknown setting; did you mean run.seed?",
            "command line: 'extra' is no setting",
            f"data.sources.text.path (RECIPE): {tmp_path}/none.jsonl does not exist",
            "optim.lr = -1.0 (command line): must be greater than 0",
            "train.global_batch_rows = 12 (RECIPE): must be divisible by the world size, which is 5",
        )
        assert len(found) == len(expected)
        assert all(sum(problem.startswith(start) for problem in found) == 1 for start in expected)

    def test_a_missing_value_does_not_hide_other_sections_problems(self, tmp_path: Path) -> None:
        text = RECIPE.replace('tokenizer = "tokenizer.model"\n', "").replace("lr = 5e-3", "lr = 0.0")
        path = write_recipe(tmp_path, text)
        assert problems_of(path, "--checkpoint.keep", "0") == [
            "data.tokenizer: is missing and has no default; set it in the recipe",
            f"optim.lr = 0.0 ({path}): must be greater than 0",
            "checkpoint.keep = 0 (command line): must be at least 1",
        ]

    def test_a_default_out_of_range_is_called_a_default(self, tmp_path: Path) -> None:
        problem = only_problem(tmp_path, more='[adapter]\nkind = "lora"\n', text=RECIPE.replace('base = "base"', ""))
        assert problem.startswith("model.base (default): must be set when adapter.kind is 'lora'")

    def test_the_message_counts_and_lists(self, recipe: Path) -> None:
        with pytest.raises(ConfigError) as one:
            load_config(recipe, ["--optim.lr", "0"])
        assert str(one.value) == (
            "1 problem in the configuration; nothing was started.\n"
            "  - optim.lr = 0.0 (command line): must be greater than 0"
        )
        with pytest.raises(
            ConfigError, match=r"^2 problems in the configuration; nothing was started.\n  - .*\n  - .*$"
        ):
            load_config(recipe, ["--optim.lr", "0", "--optim.eps", "0"])


class TestWorldSize:
    def test_rows_must_split_evenly(self, recipe: Path) -> None:
        assert problems_of(recipe, world_size=4) == []
        (problem,) = problems_of(recipe, world_size=5)
        assert problem.startswith(
            f"train.global_batch_rows = 12 ({recipe}): must be divisible by the world size, which is 5"
        )
        (problem,) = problems_of(recipe, "--train.micro-batch-rows", "2", world_size=4)
        assert problem.startswith(
            "train.micro_batch_rows = 2 (command line): must divide the 3 rows that each rank has per step at world size 4"
        )

    def test_unknown_it_leaves_the_rule_out(self, recipe: Path) -> None:
        assert problems_of(recipe, "--train.global_batch_rows", "7") == []


class TestEveryPath:
    def test_every_path_that_is_suggested_is_a_setting(self) -> None:
        paths = all_paths()
        assert len(paths) == len(set(paths)) > 40
        assert all(find_leaf(path.replace("*", "some_name")) is not None for path in paths)

    def test_the_paths_are_the_leaves_of_the_whole(self, recipe: Path) -> None:
        def leaves(value: Any, prefix: str) -> set[str]:
            if dataclasses.is_dataclass(value):
                named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            elif isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
                named = {"*": next(iter(value.values()))}
            else:
                return {prefix}
            return set().union(*(leaves(item, f"{prefix}.{name}" if prefix else name) for name, item in named.items()))

        assert set(all_paths()) == leaves(load_config(recipe), "")

    @pytest.mark.parametrize(
        "path", ["", "optim", "optim.x", "data.sources", "data.sources.a", "eval.tasks.a.b", "optim.lr.x"]
    )
    def test_anything_else_is_none(self, path: str) -> None:
        assert find_leaf(path) is None


LLAMA_2_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def strings(table: dict[str, Any]) -> dict[str, str]:
    """Every string of a TOML table, by key (values of equal keys of other tables get longer keys)."""
    found: dict[str, str] = {}

    def walk(part: dict[str, Any], prefix: str) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            elif isinstance(value, str):
                found[f"{prefix}{key}"] = value

    walk(table, "")
    return found


# A sweep's file names a recipe and is none (tests/unit/launch/sweep).
@pytest.mark.parametrize("shipped", RECIPES, ids=lambda path: path.name)
@pytest.mark.parametrize("adapter", [None, "lora", "monteclora"])
def test_a_shipped_recipe_has_no_problems_once_its_files_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: Path, adapter: str | None
) -> None:
    copied = tmp_path / "recipes" / shipped.name
    copied.parent.mkdir()
    copied.write_text(shipped.read_text())
    table = tomllib.loads(copied.read_text())
    for name, value in strings(table).items():
        for variable in re.findall(r"\$\{?(\w+)", value):
            monkeypatch.setenv(variable, str(tmp_path / variable))
        expanded = re.sub(r"\$\{?(\w+)\}?", lambda match: str(tmp_path / match[1]), value)
        place = copied.parent / expanded
        if name == "model.base" and value.startswith((".", "/", "~", "$")):
            write_base(place, max_position_embeddings=32768, **LLAMA_2_7B)
        elif name == "data.tokenizer" or name.endswith(".path"):
            if not place.suffix:
                place = place / "part-0.jsonl"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text('{"id": "0", "text": "a"}\n')
        elif name == "eval.data_dir":
            place.mkdir(parents=True, exist_ok=True)
    overrides = [] if adapter is None or "base" not in table.get("model", {}) else ["--adapter.kind", adapter]
    rows = table["train"]
    for world_size in (1, 2) if rows["global_batch_rows"] >= 2 * rows["micro_batch_rows"] else (1,):
        config: Config = load_config(copied, overrides, world_size=world_size)
        assert config.run.dir.is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("name", "rows_per_epoch", "expected"),
    [
        # Rows: 131 full batches of 768, and those of GSM8K's training pairs at 512 tokens.
        ("cpt_code_llama7b", None, (25_432, 1000, 5086)), ("ift_math_llama7b", 131 * 768, (524, 52, 0)),
        ("ift_hidden_key_llama7b", 3014, (1256, 75, 0)), ("demo", None, (160, 20, 0)), ("demo_base", None, (400, 20, 0)),
        ("cpt_code_llama7b_cooldown", None, (10_173, 1000, 2035)),
    ],
)  # fmt: skip
def test_lengths_of_the_shipped_recipes(
    monkeypatch: pytest.MonkeyPatch, name: str, rows_per_epoch: int | None, expected: tuple[int, int, int]
) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("DATA", "/data")
    config = resolve(load_config(ROOT / f"recipes/{name}.toml", needs_files=False), rows_per_epoch)
    assert (config.train.steps, config.optim.warmup_steps, config.optim.cooldown_steps) == expected
    assert list(config.length_problems()) == []


@pytest.mark.parametrize("billions", [1, 2, 4, 8, 16])
def test_the_cooldowns_branch_from_the_shipped_run(monkeypatch: pytest.MonkeyPatch, billions: int) -> None:
    """At checkpoints that it keeps, where the cooldown of a run of that length begins, and with settings that fit."""
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("DATA", "/data")
    path = ROOT / "recipes/cpt_code_llama7b_cooldown.toml"
    written = load_config(path, ["--train.tokens", f"{billions}000000000"], needs_files=False)
    parent = load_config(ROOT / "recipes/cpt_code_llama7b.toml", needs_files=False)
    assert differences(to_dict(parent), to_dict(written), BRANCH_MAY_CHANGE, BRANCH_KEEPS) == []
    points = retention_of(resolve(parent, None), None).points
    (step,) = (step for step, point in points if point == f"{0.8 * billions:.3g}e9 tokens")
    if billions == 8:
        assert written.run.branch_from == parent.run.dir / "checkpoints" / str(step)
    else:
        assert f"--train.tokens {billions:>2}000000000 --run.branch_from …/checkpoints/{step}\n" in path.read_text()
    branch, whole = resolve(written, None), resolve(parent, None)
    begun = branch.train.steps - branch.optim.cooldown_steps
    assert begun <= step <= begun + 1
    factors = [lr_factor(at, branch.train.steps, branch.optim) for at in range(step + 1)]
    # Nothing was trained at another learning rate than the shorter run would have had.
    assert factors[:step] == [lr_factor(at, whole.train.steps, whole.optim) for at in range(step)]
    assert lr_factor(begun + 1, branch.train.steps, branch.optim) < 1


def test_there_are_shipped_recipes() -> None:
    assert {"demo.toml", "demo_base.toml"} <= {path.name for path in (ROOT / "recipes").glob("*.toml")}


def test_inputs_of_these_tests_are_without_problems(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    assert problems_of(write_recipe(tmp_path), world_size=12) == []


@pytest.mark.parametrize(("written", "expected"), [('"full"', "full"), ("8", "8"), ('"8"', "8")])
def test_a_number_of_layers_is_written_as_one(tmp_path: Path, written: str, expected: str) -> None:
    text = RECIPE + f"\n[model]\nactivation_checkpointing = {written}\n[model.architecture]\nnum_layers = 9\n"
    if "[model]" in RECIPE:
        text = RECIPE.replace("[model]", f"[model]\nactivation_checkpointing = {written}", 1)
    found = load_config(write_recipe(tmp_path, text), needs_files=False)
    assert found.model.activation_checkpointing == expected


@pytest.mark.parametrize("name", ["optim.lr", "train.steps"])
def test_a_number_that_toml_does_not_have(tmp_path: Path, name: str) -> None:
    problem = only_problem(tmp_path, f"--{name}=1{'0' * 400}") if name == "train.steps" else None
    expected = "must be a number of 64 bits, as TOML has them"
    assert problem is None or expected in problem
    section, setting = name.split(".")
    written = re.sub(rf"(?m)^{setting} = .*$", f"{setting} = 1{'0' * 400}", RECIPE)
    assert f"[{section}]" in written
    assert expected in only_problem(tmp_path, text=written)


def test_a_table_on_the_command_line_that_python_gives_up_on(tmp_path: Path) -> None:
    assert "must be a table such as" in only_problem(tmp_path, "--adapter.rank_pattern=" + "[" * 5000)
