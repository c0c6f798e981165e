from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.commands.recipe_file import DataRecipe, RecipeError, read_recipe
from training import recipe as training_recipe
from training.config import RunConfig, TrainConfig


@pytest.fixture
def folder(tmp_path: Path, tokenizer_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


GOOD = """
[run]
seed = 5
dir = "../runs"
[train]
global_batch_rows = 24
unknown_here = 1
[data]
tokenizer = "tokenizer.model"
seq_len = 64
[data.sources.a]
path = "data/a.jsonl"
weight = 2
[data.sources.b]
dataset = "owner/name"
kind = "alpaca"
[data.sources.c]
path = "s3://bucket/$FOLDER"
"""


def test_reads_what_decides_the_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", "texts")
    recipe = read_recipe(write(folder, GOOD))
    assert (recipe.global_batch_rows, recipe.seed) == (24, 5)
    assert recipe.data.tokenizer == folder / "tokenizer.model"
    assert recipe.data.seq_len == 64
    assert recipe.data.sources["a"].path == str(folder / "data" / "a.jsonl")
    assert recipe.data.sources["a"].weight == 2.0
    assert recipe.data.sources["b"].dataset == "owner/name"
    assert recipe.data.sources["c"].path == "s3://bucket/texts"


@pytest.mark.parametrize("name", ["demo.toml", "demo_base.toml", "cpt_code_llama7b.toml"])
def test_agrees_with_training_on_the_recipes_of_the_project(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/nowhere/data")
    monkeypatch.setenv("SCRATCH", "/nowhere/scratch")
    monkeypatch.setattr("data_pipeline.config.DataConfig.problems", lambda self: iter(()))
    path = Path(__file__).parents[4] / "recipes" / name
    theirs = training_recipe.load_config(path, needs_files=False)
    ours = read_recipe(path)
    assert ours == DataRecipe(data=theirs.data, global_batch_rows=theirs.train.global_batch_rows, seed=theirs.run.seed)


def test_defaults_are_those_of_the_run() -> None:
    defaults = {name: DataRecipe.__dataclass_fields__[name].default for name in ("global_batch_rows", "seed")}
    assert defaults == {"global_batch_rows": TrainConfig().global_batch_rows, "seed": RunConfig().seed}


def test_a_missing_tokenizer_matters_only_where_it_is_needed(folder: Path) -> None:
    path = write(folder, '[data]\ntokenizer = "none.model"\n[data.sources.a]\npath = "data/a.jsonl"\n')
    assert read_recipe(path, needs_tokenizer=False).data.tokenizer == folder / "none.model"
    with pytest.raises(RecipeError, match=r"data\.tokenizer: .*none\.model does not exist"):
        read_recipe(path)


WRONG = """
[run]
seed = -1
[train]
global_batch_rows = 0
[data]
seq_len = "64"
bos = 1
too_lang = "cut"
cache_dir = "$NO_SUCH_VARIABLE/cache"
chat_template = 1979-05-27
[data.sources]
plain = "x.jsonl"
[data.sources.a]
path = "data/a.jsonl"
kind = "promt"
weigth = 2
[data.sources."b.c"]
path = "data/a.jsonl"
"""


def test_every_problem_at_once(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(folder, WRONG))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"12 problems in the data of {folder / 'recipe.toml'}"
    assert lines[1:] == [
        "  - train.global_batch_rows: 0 is not a whole number from 1 to 9223372036854775807",
        "  - run.seed: -1 is not a whole number from 0 to 4294967295",
        "  - data.too_lang: unknown setting; did you mean too_long?",
        "  - data.cache_dir: '$NO_SUCH_VARIABLE/cache': the environment variable NO_SUCH_VARIABLE is not set",
        "  - data.sources.a.weigth: unknown setting; did you mean weight?",
        '  - data.sources."b.c": a name must not contain a dot',
        "  - data.sources.plain: is a section: write [data.sources.plain]",
        "  - data.sources.a.kind: 'promt': input should be 'text', 'prompt', 'alpaca' or 'chat'",
        "  - data.tokenizer: is missing and has no default; set it",
        "  - data.chat_template: ['1979-05-27']: input should be a valid string",
        "  - data.seq_len: '64': input should be a valid integer",
        "  - data.bos: 1: input should be a valid boolean",
    ]


def test_problems_of_the_values_are_those_of_the_config(folder: Path) -> None:
    text = GOOD.replace('path = "s3://bucket/$FOLDER"', 'path = "none.jsonl"').replace("weight = 2", "weight = 0")
    with pytest.raises(RecipeError, match="2 problems") as caught:
        read_recipe(write(folder, text))
    assert "data.sources.a.weight: 0.0 is not above 0" in str(caught.value)
    assert f"data.sources.c.path: {folder / 'none.jsonl'} does not exist" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"[data\n", "is not valid TOML: "),
        (b"a = '\xff'\n", "cannot be read: "),
        (b"a = " + b"[" * 10_000, "is not valid TOML: "),
        (b"a = " + b"9" * 5000, "is not valid TOML: "),
        (b"a = 2020-02-30", "is not valid TOML: "),
        (b"[run]\nseed = 1\n", "data: is missing: add a section"),
        (b"data = 3\n", "data: is missing: add a section"),
    ],
)
def test_recipes_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"recipe\.toml") as caught:
        read_recipe(path)
    assert message in str(caught.value)
