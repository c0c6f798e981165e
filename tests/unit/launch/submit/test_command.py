from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.jobs import Event, events, note
from tests.unit.launch.submit.conftest import FakeSlurm
from training.files import read_json, write_json

CPU = ("--gpus", "0", "--cpus-per-task", "1", "--time", "30:00")


@pytest.fixture
def ds_config(tmp_path: Path) -> Path:
    path = tmp_path / "zero3.json"
    path.write_text('{"zero_optimization": {"stage": 3}}')
    return path


@pytest.fixture
def command(recipe: Path, ds_config: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Submit the minimal recipe, whose run directory is out/ beside it."""
    for name in ("EVAL_DATA", "DATA"):
        monkeypatch.delenv(name, raising=False)
    return ["submit", str(recipe), "--ds_config", str(ds_config), *CPU]


def problems(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a refusal, after which nothing may be on stdout."""
    printed = capsys.readouterr()
    assert printed.out == ""
    return [line.removeprefix("  - ") for line in printed.err.splitlines() if line.startswith("  ")]


class TestSubmitted:
    def test_all_of_it(
        self,
        command: list[str],
        recipe: Path,
        ds_config: Path,
        fake_slurm: FakeSlurm,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert main([*command, "--nodes", "2", "--partition", "other", "--optim.lr", "1e-3"]) == 0
        run = recipe.parent / "out"
        script = run / "slurm/out-1.sh"
        assert capsys.readouterr().out.splitlines() == [
            "job 100 submitted: nodes=2 tasks-per-node=1 time=30:00 partition=other",
            f"  script  {script}",
            f"  output  {run}/slurm/100.out",
            f"  follow  tail -F {run}/slurm/100.out",
            f"  see     python -m launch status {run}",
            f"  stop    touch {run}/PREEMPT    (saves first; while it waits: scancel 100)",
        ]
        assert fake_slurm.submitted == [script.read_text()]
        text = " ".join(script.read_text().replace("\\\n", "").split())
        assert text.endswith(f'source "$ROOT/slurm/job.sh" train {recipe} {ds_config} --optim.lr 1e-3')
        assert f"#SBATCH --output={run}/slurm/%j.out" in text
        (event,) = events(run)
        assert (event.job, event.event) == ("100", "submitted")
        assert event.message == "nodes=2 tasks-per-node=1 time=30:00 partition=other"
        assert read_json(run / "run.json")["job"]["job"] == "100"  # type: ignore[index]

    def test_scripts_are_kept(self, command: list[str], recipe: Path, fake_slurm: FakeSlurm) -> None:
        assert main(command) == 0
        assert main(command) == 0
        assert main([*command, "--name", "a b/../c"]) == 0
        names = sorted(path.name for path in (recipe.parent / "out/slurm").glob("*.sh"))
        assert names == ["a-b-..-c-1.sh", "out-1.sh", "out-2.sh"]
        assert [event.job for event in events(recipe.parent / "out")] == ["100", "101", "102"]

    def test_gres(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [*command, "--gpus", "2", "--gres", "gpu:h100:2", "--train.global_batch_rows", "8"]
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("job 100 submitted: nodes=1 gres=gpu:h100:2 time=30:00\n")
        assert "#SBATCH --gres=gpu:h100:2\n" in fake_slurm.submitted[0]
        assert "--gpus-per-node" not in fake_slurm.submitted[0]

    def test_a_name_and_a_directory_of_odd_letters(
        self, command: list[str], tmp_path: Path, fake_slurm: FakeSlurm
    ) -> None:
        assert main([*command, "--name", "/", "--run.dir", str(tmp_path / "100 % it's")]) == 0
        assert (tmp_path / "100 % it's/slurm/job-1.sh").exists()
        assert f'#SBATCH --output="{tmp_path}/100 %% it\'s/slurm/%j.out"' in fake_slurm.submitted[0]

    def test_relative_paths(
        self, command: list[str], tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        words = ["submit", "recipe.toml", "--ds_config", "zero3.json", *CPU, "--run.dir=there"]
        assert main(words) == 0
        assert (tmp_path / "there/slurm/there-1.sh").exists()
        line = fake_slurm.submitted[0].partition('job.sh"\n')[2].replace("\\\n", "").split()
        assert line == ["train", f"{tmp_path}/recipe.toml", f"{tmp_path}/zero3.json", "--run.dir", f"{tmp_path}/there"]

    def test_a_stale_stop(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stop = recipe.parent / "out/PREEMPT"
        stop.parent.mkdir()
        stop.touch()
        assert main([*command, "--dry-run"]) == 0
        assert stop.exists()
        message = f"{stop}, from an earlier stop, would stop this job at once"
        assert f"{message}: would be removed" in capsys.readouterr().err
        assert main(command) == 0
        assert f"{message}: removed" in capsys.readouterr().err
        assert not stop.exists()

    def test_a_stop_that_is_meant_for_the_job_before(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm
    ) -> None:
        run = recipe.parent / "out"
        note(run, Event(job="12", event="started"))
        (run / "PREEMPT").touch()
        fake_slurm.queued("12|RUNNING|N/A|n1|None")
        assert main([*command, "--after", "afterany:12"]) == 0
        assert (run / "PREEMPT").exists()
        assert "#SBATCH --dependency=afterany:12\n" in fake_slurm.submitted[0]

    def test_warns_of_a_place_that_only_this_machine_has(
        self,
        command: list[str],
        fake_slurm: FakeSlurm,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("launch.submit.submission.mounts", lambda: "tmpfs / tmpfs rw 0 0\n")
        assert main([*command, "--dry-run"]) == 0
        assert "warning: run.dir = " in capsys.readouterr().err


class TestDryRun:
    def test_only_the_script(
        self, command: list[str], recipe: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = sorted(recipe.parent.rglob("*"))
        assert main([*command, "--nodes", "4", "--dry-run"]) == 0
        assert sorted(recipe.parent.rglob("*")) == before
        printed = capsys.readouterr()
        assert printed.out.startswith("#!/bin/bash\n")
        assert subprocess.run(["/bin/bash", "-n"], input=printed.out, text=True, check=False).returncode == 0
        assert (
            "dry run: nothing was written or submitted. Nothing is wrong with the recipe for 4 processes" in printed.err
        )
        assert "Submitting would also look whether the cluster has such a partition" in printed.err

    def test_both_scripts(
        self, command: list[str], recipe: Path, no_slurm: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        more = [
            "--eval",
            "forgetting",
            "--eval",
            "gsm8k",
            "--export",
            f"EVAL_DATA={tmp_path}",
            "--export",
            "DTYPE=float16",
        ]
        assert main([*command, "--nodes", "4", "--eval-time", "5", "--dry-run", *more]) == 0
        first, second = capsys.readouterr().out.split("\n\n#!/bin/bash\n")[0], None
        assert first.startswith("#!/bin/bash\n")
        assert main([*command, "--nodes", "4", "--eval-time", "5", "--dry-run", *more]) == 0
        second = capsys.readouterr().out[len(first) :].strip()
        assert "#SBATCH --dependency=afterok:JOB\n#SBATCH --kill-on-invalid-dep=yes\n" in second
        assert "#SBATCH --nodes=1\n" in second
        assert "#SBATCH --time=5\n" in second
        assert "#SBATCH --signal" not in second
        for name, value in (("EVAL_DATA", tmp_path), ("DTYPE", "float16"), ("BATCH_TOKENS", 8192)):
            assert f"export {name}={value}" in second
        assert "MAX_REQUEUES" not in second
        assert second.endswith(f"score {recipe.parent}/out last --suite forgetting --suite gsm8k")

    def test_no_deepspeed_where_the_model_is_replicated(
        self, recipe: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["submit", str(recipe), *CPU, "--dry-run", "--train.placement", "replicated"]) == 0
        assert f"train {recipe} '' --train.placement replicated" in capsys.readouterr().out.replace("\\\n   ", "")


class TestScoring:
    def test_waits_for_the_training(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = recipe.parent / "evals"
        data.mkdir()
        assert main([*command, "--eval", "forgetting", "--eval.data_dir", str(data)]) == 0
        assert capsys.readouterr().out.endswith("job 101 scores the last checkpoint when job 100 is done\n")
        assert "#SBATCH --dependency=afterok:100\n" in fake_slurm.submitted[1]
        assert f"export EVAL_DATA={data}" in fake_slurm.submitted[1]
        # What is shown of a run is its last event.
        assert [(event.job, event.message[:6]) for event in events(recipe.parent / "out")] == [
            ("101", "scores"),
            ("100", "nodes="),
        ]

    def test_refused(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_slurm.says("sbatch", 'if grep -q dependency; then echo "sbatch: error: no" >&2; exit 1; fi; echo 7')
        assert main([*command, "--eval", "forgetting", "--export", f"EVAL_DATA={recipe.parent}"]) == 1
        printed = capsys.readouterr()
        assert "sbatch failed: no\nThe job that scores was not submitted; its script is " in printed.err
        assert printed.out.startswith("job 7 submitted")
        assert [event.job for event in events(recipe.parent / "out")] == ["7"]

    @pytest.mark.parametrize(
        ("more", "problem"),
        [
            ([], "--eval: compute nodes often have no internet; give the folder of the suites' data sets as eval.data_dir, or as "
                 "--export EVAL_DATA=FOLDER"),
            (["--export", "EVAL_DATA=/nowhere"], "--eval: there is no folder /nowhere; give the folder of the suites' data sets as "
                                                "eval.data_dir, or as --export EVAL_DATA=FOLDER"),
            (["--export", "DATA=/nowhere"], "--eval: there is no folder /nowhere/evals; give the folder of the suites' data sets as "
                                           "eval.data_dir, or as --export EVAL_DATA=FOLDER"),
            (["--export", "EVAL_DATA=/tmp", "--eval-time", "x"],
             "--eval-time x: is no time of Slurm's; write minutes, hours:minutes:seconds or days-hours, such as 90, 24:00:00 or 2-12"),
            (["--export", "EVAL_DATA=/tmp", "--eval-time", "2-0"], "--eval-time 2-0: partition debug allows 1-00:00:00"),
        ],
    )  # fmt: skip
    def test_problems(
        self,
        command: list[str],
        fake_slurm: FakeSlurm,
        capsys: pytest.CaptureFixture[str],
        more: list[str],
        problem: str,
    ) -> None:
        assert main([*command, "--eval", "forgetting", *more]) == 2
        assert problems(capsys) == [problem]

    def test_a_suite_that_is_written_wrong(
        self, command: list[str], fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*command, "--eval", "forgetting@x", "--export", "EVAL_DATA=/tmp"]) == 2
        (problem,) = problems(capsys)
        assert problem.startswith("--eval: ")
        assert "forgetting@x" in problem

    @pytest.mark.parametrize("name", ["EVAL_DATA", "DATA"])
    def test_data_of_the_environment(
        self,
        command: list[str],
        no_slurm: None,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        monkeypatch.setenv(name, "/there")
        assert main([*command, "--dry-run", "--no-files", "--eval", "forgetting"]) == 0
        folder = "/there" if name == "EVAL_DATA" else "/there/evals"
        assert f"export EVAL_DATA={folder} " in capsys.readouterr().out


class TestRefused:
    def test_everything_at_once(
        self, recipe: Path, tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        damaged = tmp_path / "damaged.json"
        damaged.write_text('{"optimizer": {}}')
        words = ["--nodes", "3", "--partition", "ohter", "--ds_config", str(damaged), "--optim.lr", "-1", *CPU]
        assert main(["submit", str(recipe), *words, "--train.global_batch_rows", "7"]) == 2
        found = problems(capsys)
        assert found[0].startswith("--partition ohter: there is none of this name; this cluster has other, ")
        assert found[1].startswith(f"--ds_config {damaged}")
        assert any(line.startswith("train.global_batch_rows = 7 (command line): must be divisible") for line in found)
        assert any(line.startswith("optim.lr = -1.0 (command line)") for line in found)
        assert fake_slurm.submitted == []
        assert not (recipe.parent / "out").exists()

    def test_options_and_settings(self, recipe: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["submit", str(recipe), "--nodes", "0", "--time", "x", "--optim.lrr", "1"]) == 2
        assert [line.split(":")[0] for line in problems(capsys)] == [
            "--nodes 0",
            "--time x",
            "--optim.lrr (command line)",
        ]

    def test_no_slurm(self, command: list[str], no_slurm: None, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(command) == 2
        (problem,) = problems(capsys)
        assert problem.startswith(
            "Slurm's sbatch is not on PATH: log in to a machine of the cluster that has it, or start"
        )

    def test_no_recipe(self, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["submit", "/nowhere/x.toml", *CPU]) == 2
        assert problems(capsys) == ["--recipe /nowhere/x.toml: no such file"]

    def test_no_deepspeed_json(self, recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["submit", str(recipe), *CPU]) == 2
        assert problems(capsys) == ["--ds_config is missing: the DeepSpeed JSON, such as ds_configs/zero3.json"]

    def test_another_recipes_directory(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (recipe.parent / "out").mkdir()
        (recipe.parent / "out/thesis.tex").touch()
        assert main(command) == 2
        (problem,) = problems(capsys)
        assert problem.startswith(f'run.dir = "{recipe.parent}/out": holds files but no ')

    def test_done(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(command) == 0
        record = json.loads((recipe.parent / "out/run.json").read_text())
        write_json(recipe.parent / "out/run.json", record | {"status": "done"})
        capsys.readouterr()
        assert main(command) == 2
        assert problems(capsys) == [
            f'run.dir = "{recipe.parent}/out": is done already; remove it, or choose another run.dir, to train again'
        ]

    def test_in_the_queue(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(command) == 0
        fake_slurm.queued("100|PENDING|N/A||Priority")
        capsys.readouterr()
        assert main(command) == 2
        assert problems(capsys)[0].endswith(
            "this run has jobs in the queue already: 100 (PENDING); cancel them (scancel 100), or have the new one follow "
            "(--after afterany:100)"
        )

    def test_a_queue_that_is_not_known(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_slurm.says("squeue", "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1")
        assert main(command) == 2
        assert problems(capsys) == [
            "squeue failed: slurm_load_jobs error: Socket timed out; whether a job of this run is in the queue is not known: "
            "try again later"
        ]
        assert fake_slurm.submitted == []

    def test_checkpoints_that_are_gone(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(command) == 0
        record = json.loads((recipe.parent / "out/run.json").read_text())
        write_json(recipe.parent / "out/run.json", record | {"last_checkpoint": 8})
        capsys.readouterr()
        assert main(command) == 2
        assert "run.json says that step 8 was saved" in problems(capsys)[0]

    @pytest.mark.parametrize(
        ("more", "problem"),
        [
            (["--train.stop_before", "5min"], "train.stop_before = 5min: the run would stop by itself before Slurm's signal, which "
                                              "comes 300 s before the end; make it shorter, or give a larger --signal"),
            (["--train.stop-before=5min"], "train.stop_before = 5min: the run would stop by itself before Slurm's signal, which "
                                           "comes 300 s before the end; make it shorter, or give a larger --signal"),
            (["--gpu", "H100"], "--gpu H100: the job asks for none (--gpus 0)"),
        ],
    )  # fmt: skip
    def test_more(
        self,
        command: list[str],
        fake_slurm: FakeSlurm,
        capsys: pytest.CaptureFixture[str],
        more: list[str],
        problem: str,
    ) -> None:
        assert main([*command, *more]) == 2
        assert problems(capsys) == [problem]

    @pytest.mark.parametrize("more", [["--train.stop_before", "4min"], ["--train.stop_before", "9min", "--signal", "600"],
                                      ["--train.stop_before", "9min", "--signal", "0"]])  # fmt: skip
    def test_a_stop_after_the_signal(self, command: list[str], fake_slurm: FakeSlurm, more: list[str]) -> None:
        assert main([*command, *more]) == 0

    def test_a_run_that_does_not_fit(
        self,
        recipe: Path,
        ds_config: Path,
        no_slurm: None,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        asked = {}
        monkeypatch.setattr(
            "launch.submit.submission.fit_problems", lambda config, recipe, **given: asked.update(given) or ["no"]
        )
        words = ["submit", str(recipe), "--ds_config", str(ds_config), "--gpu", "A100", "--gpus", "4", "--dry-run"]
        assert main([*words, "--train.global_batch_rows", "16"]) == 2
        assert problems(capsys) == ["no"]
        assert asked == {"gpu": "A100", "nodes": 1, "gpus": 4, "ds_config": ds_config}

    def test_paths_of_compute_nodes(
        self, command: list[str], recipe: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (recipe.parent / "train.jsonl").unlink()
        assert main([*command, "--dry-run"]) == 2
        assert "train.jsonl" in problems(capsys)[0]
        assert main([*command, "--dry-run", "--no-files"]) == 0

    def test_by_sbatch(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_slurm.says("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
        assert main([*command, "--account", "x"]) == 1
        printed = capsys.readouterr()
        script = recipe.parent / "out/slurm/out-1.sh"
        assert printed.out == ""
        assert f"sbatch failed: Invalid account\nNothing was submitted; the script is {script}.\n" in printed.err
        assert events(recipe.parent / "out") == []
        # What is left of it is no obstacle.
        fake_slurm.says("sbatch", "echo 7")
        assert main(command) == 0

    @pytest.mark.parametrize("more", [(), ("--eval", "forgetting", "--export", "EVAL_DATA=/tmp")])
    def test_a_job_that_can_not_be_recorded(
        self,
        command: list[str],
        recipe: Path,
        fake_slurm: FakeSlurm,
        capsys: pytest.CaptureFixture[str],
        more: tuple[str, ...],
    ) -> None:
        """It is in the queue; its number must be known."""
        run = recipe.parent / "out"
        (run / "slurm/jobs.jsonl").mkdir(parents=True)
        assert main([*command, "--no-files", *more]) == 1
        printed = capsys.readouterr()
        assert printed.out.startswith("job 100 submitted: nodes=1")
        for job in ("100", "101") if more else ("100",):
            assert f"job {job} is submitted, but can't be recorded in {run}: [Errno 21] Is a directory" in printed.err
            assert f"Without it: scancel {job}\n" in printed.err

    def test_a_second_script_that_can_not_be_written(
        self,
        command: list[str],
        recipe: Path,
        fake_slurm: FakeSlurm,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        slurm = recipe.parent / "out/slurm"
        fake_slurm.says("sbatch", f"cat > /dev/null; mv {slurm} {slurm}-of-before; echo 7")
        assert main([*command, "--eval", "forgetting", "--export", "EVAL_DATA=/tmp"]) == 1
        printed = capsys.readouterr()
        assert printed.out.startswith("job 7 submitted: nodes=1")
        assert f"{slurm}: can't be written: [Errno 2]" in printed.err
        assert "The job that scores was not submitted.\n" in printed.err
        assert [event.job for event in events(recipe.parent / "out")] == ["7"]

    def test_a_directory_that_can_not_be_written(
        self, command: list[str], recipe: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (recipe.parent / "out").mkdir()
        (recipe.parent / "out/slurm").touch()
        assert main(command) == 2
        message = f'run.dir = "{recipe.parent}/out": can\'t be written: [Errno 17] File exists'
        assert message in capsys.readouterr().err
        assert fake_slurm.submitted == []
