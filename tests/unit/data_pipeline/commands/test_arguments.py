from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_pipeline.commands.arguments import Files, Rows, UsageError, Work, read_request
from data_pipeline.errors import PipelineError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b.v2.jsonl", "sub/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n')
    return tmp_path


def test_files_are_sources_named_like_the_files(data: Path) -> None:
    locations = tuple(str(data / name) for name in ("a.jsonl", "b.v2.jsonl", "sub", "sub/a.jsonl"))
    request = read_request(Files(locations=(*locations, "mine=s3://b/x=y")), Work())
    assert {name: source.path for name, source in request.config.sources.items()} == {
        "a": str(data / "a.jsonl"),
        "b": str(data / "b.v2.jsonl"),
        "sub": str(data / "sub"),
        "a-2": str(data / "sub/a.jsonl"),
        "mine": "s3://b/x=y",
    }
    assert request.origin.startswith(str(data / "a.jsonl"))


def test_a_path_with_an_equals_sign_is_a_path(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "year=2024").mkdir()
    (data / "year=2024" / "x.jsonl").write_text('{"text": "x"}\n')
    monkeypatch.chdir(data)
    request = read_request(Files(locations=("year=2024/x.jsonl", "old=year=2024/x.jsonl", "year=2024")), Work())
    assert {name: source.path for name, source in request.config.sources.items()} == {
        "x": str(data / "year=2024/x.jsonl"),
        "old": str(data / "year=2024/x.jsonl"),
        "year=2024": str(data / "year=2024"),
    }


def test_a_source_is_called_like_the_folder_that_is_meant(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data / "sub")
    request = read_request(Files(locations=(".", "../sub/../sub")), Work())
    assert list(request.config.sources) == ["sub", "sub-2"]


def test_settings_of_files(data: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    files = Files(locations=("a.jsonl",), kind="prompt", prompt_field="q", response_field="a", template="Q: {q}")
    rows = Rows(tokenizer=tokenizer_path, seq_len=64, num_lanes=3, seed=0, too_long="drop", on_bad_record="skip")
    request = read_request(files, Work(cache_dir=data / "c", cache_gb=2), rows)
    (source,) = request.config.sources.values()
    assert (source.path, source.kind, source.prompt_field) == (os.path.join(os.getcwd(), "a.jsonl"), "prompt", "q")
    assert (source.response_field, source.template) == ("a", "Q: {q}")
    assert (request.num_lanes, request.seed) == (3, 0)
    config = request.config
    assert (config.seq_len, config.too_long, config.on_bad_record) == (64, "drop", "skip")
    assert (config.cache_dir, config.cache_gb, config.tokenizer) == (data / "c", 2, tokenizer_path)


def test_datasets_are_named_or_folders() -> None:
    request = read_request(Files(locations=("openai/gsm8k",), dataset=True, subset="main", split="test"), Work())
    (source,) = request.config.sources.values()
    assert (source.dataset, source.path, source.subset, source.split) == ("openai/gsm8k", None, "main", "test")
    assert list(request.config.sources) == ["gsm8k"]


@pytest.fixture
def recipe(data: Path, tokenizer_path: Path) -> Path:
    path = data / "recipe.toml"
    path.write_text(
        f'[run]\nseed = 5\n[train]\nglobal_batch_rows = 12\n[data]\ntokenizer = "{tokenizer_path}"\nseq_len = 128\n'
        '[data.sources.one]\npath = "a.jsonl"\n'
    )
    return path


def test_a_recipe_says_everything_and_rows_may_differ(recipe: Path) -> None:
    request = read_request(Files(locations=(str(recipe),)), Work(), Rows())
    assert (request.num_lanes, request.seed, request.config.seq_len) == (12, 5, 128)
    assert request.config.sources["one"].path == str(recipe.parent / "a.jsonl")
    assert request.origin == str(recipe)
    changed = read_request(Files(locations=(str(recipe),)), Work(), Rows(seq_len=256, seed=0))
    assert (changed.num_lanes, changed.seed, changed.config.seq_len) == (12, 0, 256)


def test_a_recipe_without_its_tokenizer_can_be_indexed(recipe: Path, tokenizer_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace(str(tokenizer_path), "gone.model"))
    files = Files(locations=(str(recipe),))
    assert list(read_request(files, Work()).config.sources) == ["one"]
    with pytest.raises(PipelineError, match=r"gone\.model does not exist"):
        read_request(files, Work(), Rows())
    assert read_request(files, Work(), Rows(tokenizer=tokenizer_path)).config.tokenizer == tokenizer_path


@pytest.mark.parametrize(
    ("files", "rows", "message"),
    [
        ({"locations": ()}, None, "nothing to read: name a recipe"),
        ({"locations": ("recipe.toml", "a.jsonl")}, None, "name one recipe"),
        (
            {"locations": ("recipe.toml",), "kind": "chat", "text_field": "x"},
            None,
            "--kind, --text-field: the recipe says",
        ),
        ({"locations": ("recipe.toml",), "dataset": True}, None, "--dataset: the recipe says"),
        ({"locations": ("a.jsonl",)}, {}, "--tokenizer is missing"),
        ({"locations": ("none.jsonl",)}, None, r"sources\.none\.path: .* does not exist"),
        ({"locations": ("x=a.jsonl", "x=sub")}, None, "two sources are called x"),
        ({"locations": ("recipe.toml",)}, {"num_lanes": 0}, "--num-lanes 0 is below 1"),
        ({"locations": ("recipe.toml",)}, {"seed": -1}, "--seed -1 is below 0"),
        ({"locations": ("recipe.toml",)}, {"seq_len": 2}, "seq_len: 2 tokens is too short"),
    ],
)
def test_wrong_use(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, object],
    rows: dict[str, object] | None,
    message: str,
) -> None:
    monkeypatch.chdir(recipe.parent)
    with pytest.raises(UsageError, match=message):
        read_request(Files(**files), Work(), None if rows is None else Rows(**rows))  # type: ignore[arg-type]


def test_workers() -> None:
    assert Work(workers=3).processes == 3
    assert Work().processes >= 1
    with pytest.raises(UsageError, match="--workers -1 is below 0"):
        _ = Work(workers=-1).processes
