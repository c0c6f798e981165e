from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.unit.training.minimal import minimal_config
from training.config import Config, to_dict
from training.errors import StorageError
from training.files import write_json
from training.recipe import ConfigError
from training.record import run_record as record_module
from training.record.run_record import (
    FINGERPRINTS,
    RunRecord,
    differences,
    different_settings,
    directory_problems,
    flatten,
    git_state,
    redact,
    usable_record,
    versions,
)
from training.world import SlurmJob, World

ROOT = Path(__file__).resolve().parents[4]


def world(rank: int = 0, size: int = 1) -> World:
    return World(
        rank=rank, size=size, local_rank=rank, local_size=size, master_addr="127.0.0.1", master_port=1, launcher="none"
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return minimal_config(tmp_path)


@pytest.fixture
def run_dir(config: Config) -> Path:
    """The run directory with the record of a start with `config`."""
    config.run.dir.mkdir()
    write_json(config.run.dir / "run.json", {"schema": 1, "config": to_dict(config)})
    return config.run.dir


def changed(config: Config, section: str, **values: Any) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


class TestDifferentSettings:
    def test_a_new_directory_fits(self, config: Config) -> None:
        assert different_settings(config.run.dir, config) == []

    def test_the_same_settings_fit(self, run_dir: Path, config: Config) -> None:
        assert different_settings(run_dir, config) == []

    def test_each_difference_is_named_with_both_values(self, run_dir: Path, config: Config) -> None:
        other = changed(changed(config, "optim", lr=1e-5), "adapter", targets=("q_proj",))
        assert different_settings(run_dir, other) == [
            'adapter.targets: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] there, '
            '["q_proj"] here',
            "optim.lr: 0.005 there, 1e-05 here",
        ]

    def test_the_order_of_patterns_counts(self, run_dir: Path, config: Config) -> None:
        one = changed(config, "adapter", rank_pattern={"q_proj": 4, "*": 8})
        other = changed(config, "adapter", rank_pattern={"*": 8, "q_proj": 4})
        RunRecord(run_dir, world()).open(one, {})
        assert different_settings(run_dir, one) == []
        assert different_settings(run_dir, other) == [
            'adapter.rank_pattern: {"q_proj": 4, "*": 8} there, {"*": 8, "q_proj": 4} here'
        ]

    def test_a_source_more_or_less(self, run_dir: Path, config: Config) -> None:
        source = config.data.sources["text"]
        lines = different_settings(run_dir, changed(config, "data", sources={"prose": source}))
        assert f'data.sources.prose.path: null there, "{source.path}" here' in lines
        assert f'data.sources.text.path: "{source.path}" there, null here' in lines

    @pytest.mark.parametrize(
        ("section", "values"),
        [
            ("run", {"dir": Path("/elsewhere")}), ("train", {"micro_batch_rows": 3}), ("train", {"log_every_steps": 3}),
            ("train", {"max_skipped_steps": 3}), ("model", {"activation_checkpointing": "full", "revision": "v2"}),
            ("checkpoint", {"every_steps": 3, "keep": 7, "export": False}), ("eval", {"batch_tokens": 1}),
            ("data", {"workers": 5, "cache_dir": Path("/elsewhere"), "cache_gb": 3.0, "token_cache": True}),
            ("data", {"tokenizer_engine": "reference"}),
        ],
    )  # fmt: skip
    def test_what_does_not_change_the_result_may_differ(
        self, run_dir: Path, config: Config, section: str, values: dict[str, Any]
    ) -> None:
        assert different_settings(run_dir, changed(config, section, **values)) == []

    @pytest.mark.parametrize(
        ("section", "values"),
        [
            ("run", {"seed": 3}), ("train", {"steps": 3}), ("train", {"global_batch_rows": 24}),
            ("train", {"precision": "fp32"}), ("train", {"gradient_clipping": 2.0}), ("model", {"base": None}),
            ("data", {"seq_len": 32}), ("data", {"bos": False}),
            ("data", {"too_long": "cut"}), ("data", {"on_bad_record": "skip"}), ("data", {"tokenizer": Path("/x.model")}),
            ("optim", {"weight_decay": 0.5}),
            ("eval", {"every_steps": 3}), ("eval", {"tasks": {}}), ("adapter", {"noise_scale": 1.0}),
            ("adapter", {"rank_pattern": {"q_proj": 4}}), ("adapter", {"init_from": Path("/x")}), ("adapter", {"start_step": 3}),
            ("hidden_key", {"enabled": True}), ("hidden_key", {"key_rate": 0.2}), ("hidden_key", {"both_branches": True}),
        ],
    )  # fmt: skip
    def test_what_changes_the_result_may_not(
        self, run_dir: Path, config: Config, section: str, values: dict[str, Any]
    ) -> None:
        assert different_settings(run_dir, changed(config, section, **values)) != []


class TestDifferences:
    @pytest.mark.parametrize(
        ("written", "derived"),
        [
            ({"train.tokens": 9}, "train.steps"), ({"train.epochs": 1.5}, "train.steps"),
            ({"optim.warmup": "5 %"}, "optim.warmup_steps"), ({"optim.cooldown": "5 %"}, "optim.cooldown_steps"),
        ],
    )  # fmt: skip
    def test_what_another_setting_says_is_no_difference(self, written: dict[str, Any], derived: str) -> None:
        assert differences({**written, derived: 1}, {**written, derived: 2}) == []
        (name,) = written
        assert differences({derived: 1}, {derived: 2}) == [f"{derived}: 1 there, 2 here"]
        assert [line.split(":")[0] for line in differences({**written, derived: 1}, {derived: 2})] == [name]

    def test_exceptions_of_what_may_change(self) -> None:
        there, here = {"a": {"b": 1, "c": 1}, "d": 1}, {"a": {"b": 2, "c": 2}, "d": 2}
        assert differences(there, here, ("a",), ("a.c",)) == ["a.c: 1 there, 2 here", "d: 1 there, 2 here"]
        assert differences(there, here, ("a", "d")) == []


class TestDirectory:
    def test_new_empty_or_its_own(self, config: Config) -> None:
        assert directory_problems(config) == []
        config.run.dir.mkdir()
        assert directory_problems(config) == []
        (config.run.dir / ".hidden").touch()
        assert directory_problems(config) == []

    def test_a_record_of_the_same_recipe(self, run_dir: Path, config: Config) -> None:
        (run_dir / "metrics.jsonl").touch()
        assert directory_problems(config) == []

    def test_a_file(self, config: Config) -> None:
        config.run.dir.touch()
        assert directory_problems(config) == [f'run.dir = "{config.run.dir}": is a file, not a directory']

    def test_a_folder_that_cannot_be_written(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        # Tests may run as root, who can write everywhere.
        monkeypatch.setattr("training.record.run_record.os.access", lambda path, mode: False)
        folder = config.run.dir.parent
        assert directory_problems(config) == [f'run.dir = "{config.run.dir}": {folder} can\'t be written']

    def test_a_record_that_cannot_be_read(self, run_dir: Path, config: Config) -> None:
        text = (run_dir / "run.json").read_text()
        (run_dir / "run.json").write_text(text[: len(text) // 2])
        (problem,) = directory_problems(config)
        assert problem.startswith(f'run.dir = "{run_dir}": its run.json can\'t be read, so it is unknown whose run')

    def test_somebody_elses_files(self, config: Config) -> None:
        config.run.dir.mkdir()
        (config.run.dir / "thesis.tex").touch()
        assert directory_problems(config) == [
            f'run.dir = "{config.run.dir}": holds files but no record of a run; choose an empty or new directory'
        ]

    def test_a_job_that_waited_for_its_first_start(self, config: Config) -> None:
        (config.run.dir / "slurm").mkdir(parents=True)
        write_json(config.run.dir / "run.json", {"schema": 1, "status": "not started", "job": {"job": "7"}})
        assert directory_problems(config) == []
        assert different_settings(config.run.dir, config) == []
        (config.run.dir / "checkpoints").mkdir()
        assert directory_problems(config) == [
            f'run.dir = "{config.run.dir}": holds files but no record of a run; choose an empty or new directory'
        ]

    def test_a_start_that_ended_before_its_record_can_be_started_again(self, config: Config) -> None:
        # rank 0 opens its log long before run.json; another rank may look in between.
        (config.run.dir / "logs").mkdir(parents=True)
        (config.run.dir / "logs" / "rank0.log").touch()
        (config.run.dir / "PREEMPT").touch()
        assert directory_problems(config) == []

    def test_another_recipe(self, run_dir: Path, config: Config) -> None:
        assert directory_problems(changed(config, "optim", lr=1e-5)) == [
            f'run.dir = "{run_dir}": belongs to a different recipe; choose another directory, or remove it:'
            "\n      optim.lr: 0.005 there, 1e-05 here"
        ]

    def test_many_differences_are_cut_short(self, run_dir: Path, config: Config) -> None:
        other = changed(
            config, "adapter", rank=3, alpha=3.0, dropout=0.5, num_samples=3, noise_scale=3.0, kl_weight=3.0,
            coop_weight=3.0, dirichlet_prior=3.0, estimator="sampled",
        )  # fmt: skip
        lines = directory_problems(other)[0].splitlines()
        assert len(lines) == 10
        assert lines[-1] == "      …"


def test_a_nested_table_as_dotted_paths() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}, "f": None}) == {"a.b": 1, "a.c.d": [2], "e": {}, "f": None}


class TestRedact:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["--hf.token", "s3cret"], ["--hf.token=s3cret"], ["--hf_token", "s3cret"], ["HF_TOKEN=s3cret"],
            ["--wandb.api-key", "s3cret"], ["--API_KEY=s3cret"], ["--apikey", "s3cret"], ["--password", "s3cret"],
            ["--db.passwd=s3cret"], ["--client-secret", "s3cret"], ["--credentials=s3cret"], ["--token", "s3cret"],
            ["--credential", "s3cret", "--optim.lr", "3"],
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_a_secret_is_never_written(self, arguments: list[str]) -> None:
        shown = redact(["main.py", *arguments])
        assert "s3cret" not in " ".join(shown)
        assert "***" in " ".join(shown)
        assert shown[1].partition("=")[0] == arguments[0].partition("=")[0]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--data.tokenizer", "tokenizer.model"], ["--data.tokenizer=tokenizer.model"], ["--optim.lr", "-1"],
            ["--eval.tasks.x.context_tokens", "64"], ["--eval.tasks.x.continuation_tokens=24"], ["--recipe", "r.toml"],
            ["--data.sources.secretary.path", "x"],
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_what_is_no_secret_stays(self, arguments: list[str]) -> None:
        assert redact(["main.py", *arguments]) == ["main.py", *arguments]

    def test_a_flag_hides_no_other_setting(self) -> None:
        assert redact(["x", "--use.token", "--optim.lr", "3"]) == ["x", "--use.token", "--optim.lr", "3"]

    def test_the_program_is_named_without_its_folder(self) -> None:
        assert redact(["/home/somebody/repository/training/main.py", "--a", "/data"]) == ["main.py", "--a", "/data"]
        assert redact([]) == []


class TestChanges:
    FACTS: ClassVar[dict[str, Any]] = {
        "base_fingerprint": "b", "tokenizer_fingerprint": "t", "data_fingerprint": {"sources": ["x"]},
    }  # fmt: skip

    def test_the_same_is_continued(self, config: Config) -> None:
        record = RunRecord(config.run.dir, world(0, 1))
        record.refuse_changes(self.FACTS)
        record.open(config, self.FACTS)
        record.refuse_changes(self.FACTS)

    @pytest.mark.parametrize("name", list(FACTS))
    def test_a_change_is_refused_and_nothing_written(self, config: Config, name: str) -> None:
        RunRecord(config.run.dir, world(0, 1)).open(config, self.FACTS)
        before = (config.run.dir / "run.json").read_bytes()
        with pytest.raises(ConfigError) as caught:
            RunRecord(config.run.dir, world(0, 1)).refuse_changes({**self.FACTS, name: "other"})
        (problem,) = caught.value.problems
        assert problem.startswith(
            f'run.dir = "{config.run.dir}": was started with {FINGERPRINTS[name]} of other content'
        )
        assert (config.run.dir / "run.json").read_bytes() == before


class TestLock:
    def test_one_start_at_a_time(self, config: Config) -> None:
        config.run.dir.mkdir()
        first, second = RunRecord(config.run.dir, world(0, 2)), RunRecord(config.run.dir, world(0, 2))
        assert first.lock()
        assert not second.lock()
        first.unlock()
        assert second.lock()
        second.unlock()

    def test_storage_without_locks(
        self, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(file: Any, how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        config.run.dir.mkdir()
        monkeypatch.setattr("training.record.run_record.fcntl.flock", refuse)
        record = RunRecord(config.run.dir, world(0, 1))
        assert record.lock()
        record.unlock()
        assert "don't start this run twice at once" in caplog.text


class TestRunJson:
    def opened(self, config: Config, rank: int = 0, **facts: Any) -> RunRecord:
        record = RunRecord(config.run.dir, world(rank, 2))
        record.open(config, facts)
        return record

    def read(self, config: Config) -> dict[str, Any]:
        return json.loads((config.run.dir / "run.json").read_text())

    def test_what_a_new_record_says(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["/x/main.py", "--hf.token", "s3cret", "--optim.lr", "3"])
        self.opened(config, base_fingerprint="abc")
        found = self.read(config)
        assert (found["schema"], found["status"], found["step"], found["steps"]) == (1, "running", 0, 20)
        assert found["config"] == to_dict(config)
        assert found["command"] == ["main.py", "--hf.token", "***", "--optim.lr", "3"]
        assert found["world"] == {"size": 2, "launcher": "none", "local_size": 2}
        assert found["base_fingerprint"] == "abc"
        assert found["finished"] is None
        assert len(found["starts"]) == 1
        assert found["started"] == found["starts"][0]["at"]

    def test_nothing_of_the_environment_is_in_it(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        canaries = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SOME_HARMLESS_VARIABLE", "SLURM_JOB_ID", "USER")
        for name in canaries:
            monkeypatch.setenv(name, f"canary-{name}-value")
        record = self.opened(config)
        record.finish("failed", error="x")
        text = (config.run.dir / "run.json").read_text()
        assert "canary" not in text
        assert not any(name in text for name in canaries[:4])

    def test_a_later_start_keeps_when_it_began_and_every_start(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.opened(config).finish("preempted", step=5, last_checkpoint=4)
        first = self.read(config)
        first["started"] = first["starts"][0]["at"] = "2020-01-01T00:00:00+00:00"
        write_json(config.run.dir / "run.json", first)
        self.opened(config)
        found = self.read(config)
        assert found["started"] == "2020-01-01T00:00:00+00:00"
        assert found["starts"][0]["at"] == "2020-01-01T00:00:00+00:00"
        assert len(found["starts"]) == 2
        assert (found["status"], found["finished"]) == ("running", None)
        assert found["last_checkpoint"] == 4, "until this start has one, nothing else tells that there were any"
        assert found["step"] == 5, "what is resumed says otherwise, if anything does"
        self.opened(config, last_checkpoint=None)
        assert self.read(config)["last_checkpoint"] is None

    def test_the_job_and_the_notes_of_a_start(self, config: Config) -> None:
        config.run.dir.mkdir()
        write_json(
            config.run.dir / "run.json",
            {"schema": 1, "status": "not started", "job": {"job": "7", "event": "submitted"}},
        )
        job = SlurmJob(job="7", restart=1, nodes=["n1", "n2"])
        RunRecord(config.run.dir, world(0, 2)).open(config, {}, job=job, notes=["PREEMPT is gone"])
        found = self.read(config)
        now = found["starts"][0]["at"]
        facts = {"job": "7", "restart": 1, "nodes": ["n1", "n2"]}
        assert found["status"] == "running"
        assert found["job"] == {**facts, "event": "running", "at": now}
        assert found["starts"] == [{"at": now, "world_size": 2, "job": facts, "notes": ["PREEMPT is gone"]}]
        RunRecord(config.run.dir, world(0, 2)).open(config, {})
        found = self.read(config)
        assert "job" not in found, "the last one was not Slurm's"
        assert [set(start) for start in found["starts"]] == [{"at", "world_size", "job", "notes"}, {"at", "world_size"}]

    def test_only_rank_0_writes(self, config: Config) -> None:
        record = self.opened(config, rank=1)
        record.log_metrics({"step": 1})
        record.cut_metrics(0)
        record.finish("done")
        assert not config.run.dir.exists()
        assert record.content["status"] == "done"

    def test_updates_are_written_now_and_then_but_a_status_at_once(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr(record_module.time, "monotonic", lambda: now)
        record = self.opened(config)
        record.update(step=1)
        assert self.read(config)["step"] == 0
        now = 1006.0
        record.update(step=2)
        assert self.read(config)["step"] == 2
        record.update(step=3)
        assert self.read(config)["step"] == 2
        record.finish("done", step=4)
        found = self.read(config)
        assert (found["step"], found["status"]) == (4, "done")
        assert found["finished"] is not None

    def test_a_crash_while_writing_leaves_the_last_record(self, config: Config) -> None:
        record = self.opened(config)
        with pytest.raises(TypeError):
            record.finish("done", junk=object())
        assert self.read(config)["status"] == "running"


class TestMetrics:
    @pytest.fixture
    def record(self, config: Config) -> RunRecord:
        config.run.dir.mkdir()
        return RunRecord(config.run.dir, world())

    def test_lines_after_the_step_and_half_a_line_are_dropped(self, record: RunRecord) -> None:
        path = record.dir / "metrics.jsonl"
        for step in (1, 2, 3, 4):
            record.log_metrics({"step": step, "loss": step / 10})
        with path.open("a") as file:
            file.write('{"step": 5, "lo')
        record.cut_metrics(3)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert lines == [{"step": step, "loss": step / 10} for step in (1, 2, 3)]
        record.log_metrics({"step": 4})
        assert json.loads(path.read_text().splitlines()[-1]) == {"step": 4}
        assert [file.name for file in record.dir.iterdir()] == ["metrics.jsonl"]

    @pytest.mark.parametrize("line", ["", "[]", "3", "{}", '{"step": null}', '{"step": "x"}', "\x00\x00\x00"])
    def test_a_line_that_is_no_measurement_is_dropped(self, record: RunRecord, line: str) -> None:
        path = record.dir / "metrics.jsonl"
        path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
        record.cut_metrics(9)
        assert path.read_text() == '{"step": 1}\n{"step": 2}\n'

    def test_from_the_beginning_nothing_is_left(self, record: RunRecord) -> None:
        record.cut_metrics(0)
        assert not (record.dir / "metrics.jsonl").exists()
        record.log_metrics({"step": 1})
        record.cut_metrics(0)
        assert (record.dir / "metrics.jsonl").read_text() == ""


class TestFacts:
    def test_versions_are_those_of_the_packages(self) -> None:
        import torch

        found = versions()
        assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
        assert found["python"] == sys.version.split()[0]
        assert {"deepspeed", "transformers", "safetensors"} <= found.keys()

    def test_outside_a_checkout_there_is_no_commit(self, tmp_path: Path) -> None:
        assert git_state(tmp_path) is None

    def test_without_git_there_is_no_commit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert git_state(ROOT) is None

    def test_commit_and_changed_files(self, tmp_path: Path) -> None:
        def git(*arguments: str) -> str:
            who = ["-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"]
            command = ["git", "-C", str(tmp_path), *who, *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

        try:
            git("init", "-q")
        except OSError:
            pytest.skip("no git here")
        git("commit", "-q", "--allow-empty", "-m", "x")
        assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed_files": 0}
        (tmp_path / "new.py").touch()
        assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed_files": 1}


LOG = """
import logging, sys, warnings
from pathlib import Path
from training.record.run_record import open_log
log = open_log(Path(sys.argv[1]), 3)
log.info("said")
logging.getLogger("some.library").warning("warned")
warnings.warn("a warning")
import ctypes
ctypes.string_at(0)
"""


def test_a_ranks_log_has_messages_warnings_and_the_stack_of_a_crash(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LOG, str(tmp_path)], env=env, capture_output=True, timeout=60)
    assert done.returncode < 0
    text = (tmp_path / "logs" / "rank3.log").read_text()
    assert "INFO palimpsest: said" in text
    assert "WARNING some.library: warned" in text
    assert "UserWarning: a warning" in text
    assert "Segmentation fault" in text
    assert "string_at" in text
    assert "said" not in done.stdout.decode()


def test_a_metric_that_is_not_finite_is_null(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, world(0, 1))
    record.log_metrics({"step": 3, "loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1, "mfu": None})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text) == {"step": 3, "loss": None, "grad_norm": None, "lr": 0.1, "mfu": None}


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be made: Not a directory"):
        record_module.open_log(tmp_path / "file" / "run", 0)


class TestStorageInTrouble:
    """Storage that is away stands for all that refuses: full, read-only, gone."""

    @pytest.fixture
    def told(self) -> list[str]:
        return []

    @pytest.fixture
    def record(self, config: Config, told: list[str], monkeypatch: pytest.MonkeyPatch) -> RunRecord:
        monkeypatch.setattr("training.record.unwritten.LAST_PAUSES", (0.0,))
        found = RunRecord(config.run.dir, world(), told.append)
        found.open(config, {})
        return found

    def away(self, record: RunRecord) -> Path:
        return record.dir.rename(record.dir.with_name("away"))

    def test_lines_wait_and_are_written_in_order(self, record: RunRecord, told: list[str]) -> None:
        document: Any = SimpleNamespace(source=0, number=3, epoch=0, offset=9)
        record.log_metrics({"step": 1})
        away = self.away(record)
        for step in (2, 3):
            record.log_metrics({"step": step})
            record.log_anomaly({"step": step, "kind": "skipped"}, [document])
        record.finish("preempted", step=3)
        assert not record.dir.exists(), "it could not come back if it was made anew"
        assert len(told) == 1
        assert "storage does not take 1 lines of metrics.jsonl: No such file or directory" in told[0]
        problem = record.settle()
        assert isinstance(problem, StorageError)
        assert str(problem) == (
            f"{record.dir}: storage did not take 2 lines of metrics.jsonl, 2 lines of anomalies.jsonl, what is new in run.json "
            "(No such file or directory)"
        )
        away.rename(record.dir)
        assert record.settle() is None
        assert [json.loads(line)["step"] for line in (record.dir / "metrics.jsonl").read_text().splitlines()] == [
            1,
            2,
            3,
        ]
        (first, second) = [json.loads(line) for line in (record.dir / "anomalies.jsonl").read_text().splitlines()]
        assert (first["step"], second["step"]) == (2, 3)
        assert first["documents"] == [{"source": "text", "number": 3, "epoch": 0, "offset": 9}]
        found = json.loads((record.dir / "run.json").read_text())
        assert (found["status"], found["step"]) == ("preempted", 3)
        assert len(told) == 2

    def test_lines_that_are_undone_meanwhile_are_not_written(self, record: RunRecord) -> None:
        for step in (1, 2, 3):
            record.log_metrics({"step": step, "try": 1})
        away = self.away(record)
        record.log_metrics({"step": 4, "try": 1})
        record.cut_metrics(3)
        record.cut_metrics(1)
        record.cut_metrics(2)
        record.log_metrics({"step": 2, "try": 2})
        away.rename(record.dir)
        assert record.settle() is None
        found = [json.loads(line) for line in (record.dir / "metrics.jsonl").read_text().splitlines()]
        assert found == [{"step": 1, "try": 1}, {"step": 2, "try": 2}]

    def test_a_cut_does_not_double_lines_of_an_attempt_that_failed(
        self, record: RunRecord, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The lines reached the disk, but storage said that they did not."""
        record.log_metrics({"step": 1})

        def refuse(descriptor: int) -> None:
            os.close(descriptor)
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("training.record.appended.os", SimpleNamespace(**{**vars(os), "close": refuse}))
            record.log_metrics({"step": 2})
            record.log_metrics({"step": 3})
        record.cut_metrics(2)
        assert record.settle() is None
        found = [json.loads(line) for line in (record.dir / "metrics.jsonl").read_text().splitlines()]
        assert found == [{"step": 1}, {"step": 2}]

    def test_a_full_disk_leaves_nothing_half(
        self, record: RunRecord, monkeypatch: pytest.MonkeyPatch, told: list[str]
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        record.log_metrics({"step": 1})
        with monkeypatch.context() as patch:
            patch.setattr("training.files.os.fsync", full)
            record.finish("done", step=9)
            record.cut_metrics(0)
            record.settle()
        assert sorted(path.name for path in record.dir.iterdir()) == ["metrics.jsonl", "run.json"]
        assert json.loads((record.dir / "run.json").read_text())["status"] == "running"
        assert (record.dir / "metrics.jsonl").read_text() == '{"step": 1}\n'
        assert record.settle() is None
        assert json.loads((record.dir / "run.json").read_text())["status"] == "done"
        assert (record.dir / "metrics.jsonl").read_text() == ""
        assert "No space left on device" in told[0]

    def test_at_the_start_it_is_refused(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("training.files.os.fsync", full)
        with pytest.raises(ConfigError) as caught:
            RunRecord(config.run.dir, world()).open(config, {})
        assert caught.value.problems == [f'run.dir = "{config.run.dir}": can\'t be written: No space left on device']

    def test_what_killed_starts_could_not_finish_is_removed(self, config: Config) -> None:
        config.run.dir.mkdir()
        for name in (".run.json.77.tmp", ".lock", ".other.tmp.x"):
            (config.run.dir / name).touch()
        RunRecord(config.run.dir, world()).open(config, {})
        assert sorted(path.name for path in config.run.dir.iterdir()) == [".lock", ".other.tmp.x", "run.json"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", []), ("step", "x"), ("tokens_seen", 1.5), ("seconds", 10**400), ("eval_seconds", "1"), ("starts", {}), ("starts", [3]),
        ("starts", [{"job": 3}]), ("finished", "yesterday"), ("last_checkpoint", True), ("branched_from", 3), ("branched_from", {"path": "a"}),
        ("origins", {}), ("origins", [{"path": "\0", "sha256": "x", "step": 1}]), ("epoch", 3), ("epoch", {"rows": "x"}),
    ],
)  # fmt: skip
def test_a_record_that_no_run_writes(config: Config, run_dir: Path, name: str, value: Any) -> None:
    assert directory_problems(config) == []
    write_json(run_dir / "run.json", {"schema": 1, "config": to_dict(config), name: value})
    assert directory_problems(config) == [
        f'run.dir = "{run_dir}": its run.json is damaged: {name} is not what a run writes there; restore it, or choose another '
        "directory"
    ]
    assert usable_record(run_dir) == {}
