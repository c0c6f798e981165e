"""The harness's tasks by name, from local data, and everything that is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from evals.errors import EvalError
from evals.harness.run import build_requests
from evals.harness.specs import parse_specs
from evals.harness.suites import TASKS
from evals.harness.task_index import FOLDERS, manager
from evals.harness.tasks import compiled_templates, load_tasks


def load(texts: list[str], data_dir: Path, **settings: Any) -> list[Any]:
    return load_tasks(parse_specs(texts), data_dir=data_dir, **settings)


def prompts(loaded: Any) -> list[tuple[Any, ...]]:
    build_requests(loaded)
    return [instance.args for instance in loaded.task.instances]


def refused(texts: list[str], data_dir: Path | None, **settings: Any) -> str:
    with pytest.raises(EvalError) as caught:
        load_tasks(parse_specs(texts), data_dir=data_dir, **settings)
    return str(caught.value)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))


@pytest.fixture
def humaneval(tmp_path: Path) -> Path:
    record = {
        "task_id": "X/0",
        "prompt": "def one():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    }
    write_lines(tmp_path / "data" / "humaneval.jsonl", [record])
    return tmp_path / "data"


def test_the_official_prompts_are_asked(data_dir: Path) -> None:
    winogrande, arc = load(["winogrande", "arc_challenge@1"], data_dir)
    assert prompts(winogrande)[:2] == [
        ("Sarah was better than Maria so Sarah", " won."),
        ("Sarah was better than Maria so Maria", " won."),
    ]
    assert prompts(arc) == [
        ("Question: What is 0 apples and 0 apples?\nAnswer:", f" {choice}") for choice in ("0", "0", "a roof")
    ]
    assert (winogrande.task.VERSION, winogrande.shots, winogrande.is_code) == (1.0, 0, False)


def test_shown_examples_come_from_the_tasks_split(data_dir: Path) -> None:
    message = refused(["arc_challenge:2"], data_dir)
    assert "arc_challenge_train.jsonl[.gz]" in message
    assert "arc_challenge_test" not in message
    train = {"question": "Who?", "choices": {"text": ["me", "you"], "label": ["A", "B"]}, "answerKey": "A", "id": "t"}
    records = [train | {"question": f"What is {number}?"} for number in range(50)]
    write_lines(data_dir / "arc_challenge" / "train.jsonl", records)
    (loaded,) = load(["arc_challenge:2"], data_dir)
    assert loaded.shots == 2
    shown = prompts(loaded)[0][0]
    assert shown.count("Answer: me\n\n") == 2
    assert shown.endswith("What is 0 apples and 0 apples?\nAnswer:")
    # Asked again, the same examples are shown.
    assert prompts(loaded)[0][0] == shown


def test_a_read_only_folder_will_do(data_dir: Path) -> None:
    before = sorted(data_dir.rglob("*"))
    for path in [data_dir, *before]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        load(["winogrande"], data_dir)
    finally:
        for path in [data_dir, *before]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert sorted(data_dir.rglob("*")) == before


def test_all_that_is_missing_is_listed(data_dir: Path) -> None:
    message = refused(["helaswag", "piqa", "boolq", "winogrande"], data_dir)
    assert "helaswag: no suite, task or task file of this name; did you mean hellaswag, " in message
    assert f"piqa: no data for validation in {data_dir}; looked for piqa_validation.jsonl[.gz], " in message
    assert "It is published as baber/piqa on huggingface.co" in message
    assert "boolq: no data for validation" in message
    assert "winogrande" not in message


def test_a_name_like_none_gets_the_suites(data_dir: Path) -> None:
    assert "zzzzqqqq: no suite, task or task file of this name; suites are forgetting" in refused(
        ["zzzzqqqq"], data_dir
    )


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/none: no such folder" in refused(["winogrande"], tmp_path / "none")


def test_a_hub_out_of_reach_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'allenai/winogrande' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refused(["winogrande"], None)
    assert "winogrande: its data cannot be loaded from the hub (ConnectionError: Couldn't reach" in message
    assert "download it where there is internet, and name its folder with data_dir (--data)" in message
    assert "more" not in message


def test_groups_and_tags_are_their_tasks(data_dir: Path) -> None:
    message = refused(["mmlu_stem:5@3"], data_dir)
    assert "mmlu_astronomy: no data for test and dev in" in message
    write_lines(
        data_dir / "arc_easy" / "test.jsonl",
        [{"id": "e", "question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}],
    )
    loaded = load(["new=ai2_arc@1"], data_dir)
    assert [task.spec.name for task in loaded] == ["arc_challenge@1", "arc_easy@1"]
    assert [task.spec.task.metric for task in loaded] == ["acc_norm", "acc"]
    assert {(task.spec.suite, task.spec.domain) for task in loaded} == {("ai2_arc", "new")}
    assert "arc_easy is named twice" in refused(["ai2_arc", "arc_easy"], data_dir)


def test_programs_are_taken_without_the_harnesss_judge(humaneval: Path) -> None:
    (loaded,) = load(["humaneval", "old=gsm8k"][:1], humaneval)
    assert loaded.is_code
    assert not loaded.is_fenced
    ((context, kwargs),) = prompts(loaded)
    assert context == "def one():\n"
    assert kwargs["until"] == ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
    assert (kwargs["do_sample"], kwargs["temperature"], kwargs["top_p"]) == (True, 0.2, 0.95)
    assert loaded.task.instances[0].repeats == 50


def test_programs_that_cannot_be_judged_are_refused(humaneval: Path) -> None:
    assert "mbpp: its answers are programs, and only tasks with the fields prompt, test, entry_point" in refused(
        ["mbpp"], humaneval
    )
    path = humaneval / "humaneval.jsonl"
    record = json.loads(path.read_text())
    del record["entry_point"]
    path.write_text(json.dumps(record))
    assert "humaneval: the task cannot be made" in refused(["humaneval"], humaneval)


def test_answers_may_be_bounded(humaneval: Path) -> None:
    message = refused(["humaneval"], humaneval, max_length=1024)
    assert "humaneval: answers of up to 1024 tokens leave no room for a prompt in the model's 1024" in message
    (loaded,) = load(["humaneval"], humaneval, max_length=1024, max_new_tokens=16)
    assert prompts(loaded)[0][1]["max_gen_toks"] == 16
    (loaded,) = load(["humaneval"], humaneval, max_length=2048, max_new_tokens=4096)
    assert prompts(loaded)[0][1]["max_gen_toks"] == 1024


def write_task(folder: Path, **fields: Any) -> Path:
    write_lines(folder / "mine.jsonl", [{"q": "a b c", "a": "d"}, {"q": "e f", "a": "g"}])
    config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "mine.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **fields,
    }
    path = folder / "my_task.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def test_a_task_file_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (loaded,) = load_tasks(parse_specs([f"new={write_task(tmp_path)}@1"]))
    assert (loaded.spec.name, loaded.spec.domain) == ("my_task@1", "new")
    assert [context for context, _ in prompts(loaded)] == ["a b c"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generation_kwargs": {"num_beams": 2}}, "my_task: generation_kwargs num_beams cannot be followed"),
        ({"output_type": "riddle"}, "my_task: the task cannot be made .ValueError: Got invalid output_type 'riddle'"),
        ({"unsafe_code": True}, "my_task: its answers are programs, and only tasks with the fields"),
        ({"task": ["a", "b"]}, "my_task.yaml: no single task in this file"),
    ],
)
def test_task_files_that_cannot_be_used(
    fields: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(EvalError, match=message):
        load_tasks(parse_specs([str(write_task(tmp_path, **fields))]))


def test_a_task_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    message = refused([str(tmp_path / "broken.yaml"), str(tmp_path / "none.yaml")], None)
    assert "broken.yaml: not a task file" in message
    assert "none.yaml: no such task file" in message


def test_functions_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    path = write_task(tmp_path)
    config = path.read_text()
    path.write_text(config[:-1] + ', "process_docs": !function gone.function}')
    assert "the functions of" in refused([str(path)], None)


def test_loading_leaves_logging_and_bars_as_they_were(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    level = logging.getLogger("lm_eval").level
    has_bars = datasets.utils.are_progress_bars_disabled()
    build_requests(load(["winogrande"], data_dir)[0])
    assert logging.getLogger("lm_eval").level == level
    assert datasets.utils.are_progress_bars_disabled() == has_bars
    assert capsys.readouterr().err == ""


def test_the_suites_tasks_are_where_they_are_looked_for() -> None:
    for task in TASKS.values():
        index = manager(FOLDERS[task.name]).task_index
        assert index[task.name].kind.name == "TASK"


def test_a_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.utils import apply_template, env

    compile_template, compiled = env.from_string, []
    monkeypatch.setattr(env, "from_string", lambda source: [compiled.append(source), compile_template(source)][1])
    counting = env.from_string
    with compiled_templates():
        assert [apply_template("{{q}}?", {"q": word}) for word in ("who", "why")] == ["who?", "why?"]
    assert compiled == ["{{q}}?"]
    assert env.from_string is counting
