"""Every message of the configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

from evals.config import EvalConfig, Kind, TaskConfig, choice_fits, metric_of
from evals.held_out.evaluate import TASKS
from tests.permissions import locked


def problems(config: EvalConfig | TaskConfig) -> dict[str, str]:
    return dict(config.problems())


def task(path: Path, **settings: object) -> TaskConfig:
    return TaskConfig(**({"kind": "bits_per_byte", "path": path, "domain": "new"} | settings))  # type: ignore[arg-type]


def test_defaults_have_no_problems(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    assert problems(EvalConfig()) == {}
    assert problems(EvalConfig(tasks={"code": task(tmp_path / "a.jsonl")})) == {}


def test_every_wrong_value_is_named_with_its_task(tmp_path: Path) -> None:
    wrong = task(
        tmp_path / "missing.jsonl",
        kind="guess",
        domain="mine",
        max_examples=0,
        max_document_bytes=-1,
        context_tokens=0,
        continuation_tokens=0,
        num_choices=1,
        seed=-1,
        prompt_field="",
        response_field="",
        template="no field",
    )
    found = problems(EvalConfig(tasks={"code": wrong}, every_steps=-1, batch_tokens=0, posterior_samples=-1))
    assert set(found) == {"every_steps", "batch_tokens", "posterior_samples"} | {
        f"tasks.code.{name}"
        for name in (
            *("kind", "path", "domain", "max_examples", "max_document_bytes"),
            *("context_tokens", "continuation_tokens", "num_choices", "seed"),
            *("prompt_field", "response_field", "template"),
        )
    }
    assert "python -m data_pipeline demo" in found["tasks.code.path"]
    assert "missing.jsonl" in found["tasks.code.path"]
    assert "'guess'" in found["tasks.code.kind"]
    assert "bits_per_byte, continuation_choice, response_bits_per_byte" in found["tasks.code.kind"]
    assert found["tasks.code.response_field"] == "is empty; name the field that holds the response"
    assert "'mine'" in found["tasks.code.domain"]
    assert found["tasks.code.num_choices"] == "1 is too small; use 2 or more"
    assert found["every_steps"].startswith("-1 is negative")
    assert found["batch_tokens"].startswith("0 tokens")
    assert found["posterior_samples"].startswith("-1 is negative; use 0 for the posterior mean only")


def test_a_template_that_is_none_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    for template, message in (
        ("{", "cannot be read (Single '{' encountered in format string); write fields as {name} and a brace itself as"),
        ("no field", "has the fields []; name at least one, written as {name}"),
        ("{} {prompt}", "has the fields ['', 'prompt']; name at least one, written as {name}"),
        ("{prompt.x}", "has the fields ['prompt.x']"),
    ):
        found = problems(task(tmp_path / "a.jsonl", template=template))
        assert found.keys() == {"template"}
        assert found["template"].startswith(message)
    assert not problems(task(tmp_path / "a.jsonl", template="{{}} {prompt}"))


def test_a_task_name_must_be_usable_in_a_flag(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    found = problems(EvalConfig(tasks={"my.code": task(tmp_path / "a.jsonl")}))
    assert found == {"tasks.my.code": "'my.code' cannot be a task's name; use letters, digits, _ and -"}


def test_wrong_suites_and_settings_of_them_are_named(tmp_path: Path) -> None:
    found = problems(EvalConfig(max_new_tokens=0))
    assert found == {"max_new_tokens": "0 is too small; use 1 or more, or leave it out"}
    found = problems(EvalConfig(suites=("forgetting@",), data_dir=tmp_path / "nowhere", code_isolation="maybe"))  # type: ignore[arg-type]
    assert set(found) == {"suites", "data_dir", "code_isolation"}
    assert "'' is not a number of examples to score" in found["suites"]
    assert found["data_dir"].startswith(
        f"there is no folder {tmp_path / 'nowhere'}; give the one with the suites' data"
    )
    assert found["code_isolation"] == "'maybe' is not a choice; use required, or none"
    assert set(problems(EvalConfig(final_suites=("mine=piqa",)))) == {"final_suites"}
    twice = problems(EvalConfig(suites=("hellaswag",), final_suites=("new=hellaswag",)))
    assert twice["final_suites"].startswith("hellaswag is named")


def test_a_task_of_ones_own_cannot_have_the_name_of_a_suites_task(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    found = problems(EvalConfig(tasks={"piqa": task(tmp_path / "a.jsonl")}, final_suites=("piqa",)))
    assert found == {"tasks.piqa": "is the name of a task of the suites, too; give it another one"}


def test_what_is_scored_when_and_by_which_metric(tmp_path: Path) -> None:
    config = EvalConfig(
        tasks={"code": task(tmp_path), "odd": task(tmp_path, kind="guess")},
        suites=("forgetting@20",),
        final_suites=("forgetting", "forgetting@20"),
    )
    on_the_way = ["hellaswag@20", "arc_challenge@20", "winogrande@20"]
    assert [spec.name for spec in config.specs(is_end=False)] == on_the_way
    assert [spec.name for spec in config.specs(is_end=True)] == [
        *on_the_way,
        "hellaswag",
        "arc_challenge",
        "winogrande",
    ]
    assert config.metrics() == {"code": "bits_per_byte", "odd": None} | dict.fromkeys(on_the_way, "accuracy")


def test_of_every_kind_of_task_the_metric_is_known() -> None:
    assert {kind: metric_of(kind) for kind in get_args(Kind)} == {kind: module.METRIC for kind, module in TASKS.items()}


def test_rows_that_do_not_fit_are_found_before_the_run(tmp_path: Path) -> None:
    choice = task(tmp_path, kind="continuation_choice", context_tokens=64, continuation_tokens=24)
    config = EvalConfig(tasks={"choice": choice, "bits": task(tmp_path)})
    assert choice_fits(choice, 88)
    assert list(config.seq_len_problems(88)) == []
    ((name, message),) = config.seq_len_problems(87)
    assert name == "tasks.choice.context_tokens"
    assert "64 context tokens and 24 continuation tokens do not fit into rows of 87 tokens" in message


def test_configuration_and_collecting_need_no_torch() -> None:
    code = (
        "import sys, evals.config, evals.collect.table, evals.report.write\n"
        "sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    )
    repository = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, timeout=60).returncode == 0


def test_public_names_are_all_importable() -> None:
    import evals

    for name in evals.__all__:
        assert callable(getattr(evals, name)), name
    assert not hasattr(evals, "no_such_name")


def test_paths_that_cannot_be_looked_at(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    with locked(private):
        found = problems(EvalConfig(tasks={"code": task(private / "x")}, data_dir=private / "x"))
    assert found == dict.fromkeys(
        ("data_dir", "tasks.code.path"), f"{private / 'x'} can't be looked at: Permission denied"
    )
    with locked(private):
        assert problems(EvalConfig(data_dir=private)) == {
            "data_dir": f"{private} can't be looked at: Permission denied"
        }
