"""`ls` and `verify` on runs whose checkpoints are whole, damaged and unfinished."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.permissions import locked
from tests.ranks import ROOT
from tests.unit.training.checkpoint.stored import store
from tests.unit.training.minimal import minimal_config
from training.checkpoint import commands, storage
from training.checkpoint.__main__ import main
from training.checkpoint.manifest import Checkpoint
from training.config import to_dict
from training.files import write_json

TENSORS = {"a": torch.arange(40.0).view(5, 8), "b": torch.ones(3)}
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with checkpoints of steps 100, 200 and 300."""
    config = to_dict(
        minimal_config(
            tmp_path / "recipe", "--train.steps", "400", "--checkpoint.keep", "1", "--checkpoint.keep_at", "100 steps"
        )
    )
    run = tmp_path / "run"
    for step in (100, 200, 300):
        store(run / "checkpoints", step, TENSORS, world_size=2, states=("exp_avg",), config=config)
    return run


def shard(run: Path, step: int, rank: int = 0) -> Path:
    return run / "checkpoints" / str(step) / f"rank-{rank:05d}-of-00002.safetensors"


def change_a_byte(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def listed(capsys: Captured, *paths: Path, code: int = 0) -> list[dict[str, Any]]:
    assert main(["ls", *map(str, paths), "--json"]) == code
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def verified(capsys: Captured, *arguments: Path | str) -> tuple[int, list[str]]:
    """The exit code and the lines that are printed."""
    code = main(["verify", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


class TestListing:
    def test_a_line_per_checkpoint_with_all_that_is_known(
        self, run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
        assert main(["ls", str(run)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == str(run / "checkpoints")
        assert lines[2].split() == ["step", "tokens", "written", "ranks", "placement", "size", "kept", "as", "state"]
        rows = [" ".join(line.split()) for line in lines[4:7]]
        size = sum(path.stat().st_size for path in (run / "checkpoints" / "300").iterdir())
        assert rows == [
            f"300 153,600 2026-05-04 03:02 2 zero3 {size / 1e3:.1f} kB the newest ok",
            f"200 102,400 2026-05-04 03:02 2 zero3 {size / 1e3:.1f} kB ok",
            f"100 51,200 2026-05-04 03:02 2 zero3 {size / 1e3:.1f} kB at 100 steps ok",
        ]

    def test_for_programs(self, run: Path, capsys: Captured) -> None:
        folder = run / "checkpoints" / "100"
        assert listed(capsys, run)[-1] == {
            "path": str(folder), "step": 100, "tokens_seen": 51200, "written": "2026-05-04T03:02:01+00:00",
            "world_size": 2, "placement": "zero3", "bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "kept": ["at 100 steps"], "state": "ok", "problem": None,
        }  # fmt: skip

    def test_a_run_its_checkpoints_or_one_of_them(self, run: Path, capsys: Captured) -> None:
        def steps(*paths: Path) -> list[int]:
            return [entry["step"] for entry in listed(capsys, *paths)]

        assert steps(run) == steps(run / "checkpoints") == [300, 200, 100]
        assert steps(run / "checkpoints" / "200") == [200]
        assert steps(run / "checkpoints" / "200", run) == [200, 300, 200, 100]
        copied = shutil.copytree(run / "checkpoints" / "100", run.parent / "best-of-all")
        assert steps(Path(copied)) == [100]

    def test_damaged_and_unfinished_ones(self, run: Path, capsys: Captured) -> None:
        shard(run, 300).write_bytes(b"short")
        (run / "checkpoints" / "200" / "MANIFEST.json").unlink()
        # What is in a file is for verify.
        change_a_byte(shard(run, 100))
        unfinished = run / "checkpoints" / ".400.a1.unfinished"
        unfinished.mkdir()
        (unfinished / "half").write_bytes(bytes(500))
        size = shard(run, 100).stat().st_size
        found = [
            (entry["step"], entry["state"], entry["problem"], entry["kept"]) for entry in listed(capsys, run, code=1)
        ]
        assert found == [
            (300, "damaged", f"rank-00000-of-00002.safetensors: has 5 bytes instead of {size}", []),
            (200, "damaged", "MANIFEST.json: missing, so the checkpoint was never completed", []),
            (100, "ok", None, ["the newest", "at 100 steps"]),
            (400, "unfinished", None, []),
        ]
        assert listed(capsys, run, code=1)[-1]["bytes"] == 500
        assert main(["ls", str(run)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[-1] for line in lines[4:8]] == ["damaged", "damaged", "ok", "unfinished"]
        assert lines[-2] == f"damaged: {run}/checkpoints/300: {shard(run, 300).name}: has 5 bytes instead of {size}"

    def test_a_copy_under_the_name_of_another_step(self, run: Path, capsys: Captured) -> None:
        copied = shutil.copytree(run / "checkpoints" / "100", run / "checkpoints" / "900")
        entry = listed(capsys, run, code=1)[0]
        assert (entry["step"], entry["state"]) == (900, "damaged")
        assert entry["problem"] == "is that of step 100; was it renamed?"
        assert main(["ls", str(run)]) == 1
        message = f"{copied}: is that of step 100; was it renamed?"
        assert f"damaged: {message}" in capsys.readouterr().out.splitlines()
        code, lines = verified(capsys, run)
        assert (code, lines[:2]) == (1, [f"{copied}: DAMAGED", f"  {message}"])
        assert lines[-2] == f"{run}/checkpoints: a start of this run continues from step 300"

    def test_what_a_kill_has_left_of_a_save_that_replaces_one(self, run: Path, capsys: Captured) -> None:
        root = run / "checkpoints"
        store(root, 50, TENSORS).rename(root / ".50.deleted")
        shutil.copytree(root / "300", root / ".300.b2.unfinished")
        (root / "300").rename(root / ".300.replaced")
        shutil.copytree(root / "200", root / ".200.replaced")

        def found() -> list[tuple[str, int, str, list[str]]]:
            entries = listed(capsys, run)
            return [(Path(each["path"]).name, each["step"], each["state"], each["kept"]) for each in entries]

        assert found() == [
            (".300.replaced", 300, "ok", ["the newest"]), ("200", 200, "ok", []), ("100", 100, "ok", ["at 100 steps"]),
            (".200.replaced", 200, "deleted", []), (".300.b2.unfinished", 300, "unfinished", []),
            (".50.deleted", 50, "deleted", []),
        ]  # fmt: skip
        code, lines = verified(capsys, run)
        assert code == 0
        assert [line.partition(", ")[0] for line in lines] == [
            f"{root}/.300.replaced: ok",
            f"{root}/200: ok",
            f"{root}/100: ok",
            f"{root}: a start of this run continues from step 300",
            "nothing is damaged",
        ]
        # That is what a start makes of it.
        storage.tidy_up(root)
        assert found() == [
            ("300", 300, "ok", ["the newest"]), ("200", 200, "ok", []), ("100", 100, "ok", ["at 100 steps"])
        ]  # fmt: skip

    @pytest.mark.parametrize("key", ["branched_from", "origins"])
    def test_points_that_were_passed_before_the_run_began_keep_nothing(
        self, run: Path, capsys: Captured, key: str
    ) -> None:
        start = {
            "path": str(run.parent / "other" / "checkpoints" / "150"),
            "given": "other",
            "step": 150,
            "sha256": "a",
        }
        shutil.rmtree(run / "checkpoints" / "100")
        assert [entry["kept"] for entry in listed(capsys, run)] == [["the newest"], ["at 100 steps"]]
        write_json(run / "run.json", {key: start if key == "branched_from" else [start]})
        assert [entry["kept"] for entry in listed(capsys, run)] == [["the newest"], []]

    def test_why_they_are_kept_is_left_out_where_the_recipe_is_unknown(self, tmp_path: Path, capsys: Captured) -> None:
        store(tmp_path / "run" / "checkpoints", 5, TENSORS, config={"data": "?"})
        assert listed(capsys, tmp_path / "run")[0]["kept"] == []

    def test_the_length_of_an_epoch_is_the_runs(self, tmp_path: Path, capsys: Captured) -> None:
        # Of 60 rows, 12 per step.
        config = to_dict(
            minimal_config(tmp_path / "recipe", "--checkpoint.keep", "1", "--checkpoint.keep_at", "1 epochs")
        )
        for step in (5, 10):
            store(tmp_path / "run" / "checkpoints", step, TENSORS, config=config)
        assert [entry["kept"] for entry in listed(capsys, tmp_path / "run")] == [["the newest"], []]
        write_json(tmp_path / "run" / "run.json", {"epoch": {"rows": 60}})
        assert [entry["kept"] for entry in listed(capsys, tmp_path / "run")] == [["the newest"], ["at 1 epochs"]]


class TestWhatIsNotThere:
    @pytest.mark.parametrize("command", ["ls", "verify"])
    def test_it_is_said(self, command: str, run: Path, capsys: Captured) -> None:
        (run.parent / "empty" / "checkpoints").mkdir(parents=True)
        (run.parent / "2024").mkdir()
        (run.parent / "file").touch()
        for name, message in {
            "nothing": "no such folder; name a run, or a checkpoint",
            "file": "is a file; name a run, or a checkpoint",
            "2024": "there is no checkpoint, neither here nor in checkpoints/; name a run, or a checkpoint",
            "empty": "there is no checkpoint, neither here nor in checkpoints/; name a run, or a checkpoint",
        }.items():
            assert main([command, str(run.parent / name)]) == 2
            told = capsys.readouterr()
            assert told.err == f"error: {run.parent / name}: {message}\n"
            assert told.out == ""

    def test_others_are_listed_nevertheless(self, run: Path, capsys: Captured) -> None:
        assert main(["ls", str(run.parent / "nothing"), str(run), "--json"]) == 2
        assert len(json.loads(capsys.readouterr().out)) == 3

    def test_others_are_verified_nevertheless(self, run: Path, capsys: Captured) -> None:
        root, nothing = run / "checkpoints", run.parent / "nothing"
        change_a_byte(shard(run, 200))
        assert main(["verify", str(root / "100"), str(nothing), str(root / "200")]) == 2
        told = capsys.readouterr()
        assert [line.partition(", ")[0] for line in told.out.splitlines()] == [
            f"{root}/100: ok",
            f"{root}/200: DAMAGED",
            f"  {shard(run, 200)}: content differs from what was written (SHA-256)",
            "1 of 2 checkpoints damaged",
        ]
        assert f"error: {nothing}: no such folder; name a run, or a checkpoint\n" in told.err
        # Of what was not found nobody knows whether it is damaged.
        code, lines = verified(capsys, root / "100", nothing)
        assert (code, len(lines)) == (2, 1)


class TestVerifying:
    def test_all_good(self, run: Path, capsys: Captured) -> None:
        code, lines = verified(capsys, run)
        assert code == 0
        assert [line.partition(", ")[0] for line in lines] == [
            *(f"{run}/checkpoints/{step}: ok" for step in (300, 200, 100)),
            f"{run}/checkpoints: a start of this run continues from step 300",
            "nothing is damaged",
        ]

    def test_every_damaged_file_is_named(self, run: Path, capsys: Captured) -> None:
        change_a_byte(shard(run, 300, 0))
        shard(run, 300, 1).unlink()
        size = shard(run, 100).stat().st_size
        shard(run, 100).write_bytes(shard(run, 100).read_bytes()[:-1])
        code, lines = verified(capsys, run)
        assert code == 1
        assert lines[:3] == [
            f"{run}/checkpoints/300: DAMAGED",
            f"  {shard(run, 300, 0)}: content differs from what was written (SHA-256)",
            f"  {shard(run, 300, 1)}: missing",
        ]
        assert lines[3].startswith(f"{run}/checkpoints/200: ok, ")
        assert lines[4:] == [
            f"{run}/checkpoints/100: DAMAGED",
            f"  {shard(run, 100)}: has {size - 1} bytes instead of {size}",
            f"{run}/checkpoints: a start of this run continues from step 200",
            "2 of 3 checkpoints damaged",
        ]

    def test_any_byte(self, run: Path, capsys: Captured) -> None:
        chosen = random.Random(5)
        folder = run / "checkpoints" / "200"
        for path in sorted(folder.iterdir()) * 4:
            whole = path.read_bytes()
            change_a_byte(path, chosen.randrange(len(whole)))
            assert verified(capsys, folder)[0] == 1
            path.write_bytes(whole)
        assert verified(capsys, folder)[0] == 0

    def test_one(self, run: Path, capsys: Captured) -> None:
        change_a_byte(shard(run, 300))
        code, lines = verified(capsys, run / "checkpoints" / "200")
        assert code == 0
        assert len(lines) == 2
        assert lines[0].startswith(f"{run}/checkpoints/200: ok, ")

    def test_only_the_newest(self, run: Path, capsys: Captured) -> None:
        change_a_byte(shard(run, 200))
        code, lines = verified(capsys, run, "--newest")
        assert (code, len(lines)) == (0, 3)
        assert lines[1] == f"{run}/checkpoints: a start of this run continues from step 300"
        change_a_byte(shard(run, 300))
        code, lines = verified(capsys, run, "--newest")
        assert code == 1
        assert lines[2] == (
            f"{run}/checkpoints: the newest is damaged, and a start of this run looks for an older one; leave out --newest to "
            "see which"
        )

    def test_none_is_good(self, run: Path, capsys: Captured) -> None:
        for step in (100, 200, 300):
            change_a_byte(run / "checkpoints" / str(step) / "MANIFEST.json", 300)
        code, lines = verified(capsys, run)
        assert code == 1
        assert lines[-2:] == [
            f"{run}/checkpoints: every checkpoint is damaged, and a start of this run is refused; restore one, or remove the "
            "run directory to begin the run anew",
            "3 of 3 checkpoints damaged",
        ]

    def test_a_run_that_is_done(self, run: Path, capsys: Captured) -> None:
        write_json(run / "run.json", {"status": "done"})
        code, lines = verified(capsys, run)
        assert (code, lines[-2:]) == (
            0, [f"{run}/checkpoints: the run is done, and a start of it trains no further", "nothing is damaged"]
        )  # fmt: skip
        change_a_byte(shard(run, 300))
        assert verified(capsys, run)[1][-2] == f"{run}/checkpoints: a start of this run continues from step 200"

    def test_no_start_continues_from_what_was_set_aside(self, run: Path, capsys: Captured) -> None:
        aside = run / "checkpoints" / "set-aside-1"
        aside.mkdir()
        for step in (200, 300):
            (run / "checkpoints" / str(step)).rename(aside / str(step))
        code, lines = verified(capsys, aside)
        assert (code, len(lines), lines[-1]) == (0, 3, "nothing is damaged")
        assert [(entry["step"], entry["kept"]) for entry in listed(capsys, aside)] == [(300, []), (200, [])]
        assert main(["ls", str(aside)]) == 0
        assert capsys.readouterr().out.splitlines()[0] == str(aside)

    def test_there_is_only_an_unfinished_one(self, run: Path, capsys: Captured) -> None:
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints" / ".5.a.unfinished").mkdir(parents=True)
        code, lines = verified(capsys, run)
        assert code == 0
        assert lines[0] == (
            f"{run}/checkpoints: there is no complete checkpoint yet, and nothing that a start of this run could continue from"
        )

    def test_its_run_deletes_one_meanwhile(self, run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
        file_damage = commands.file_damage

        def damage(checkpoint: Checkpoint, entry: dict[str, Any]) -> str | None:
            if checkpoint.step == 200:
                shutil.rmtree(checkpoint.path, ignore_errors=True)
            return file_damage(checkpoint, entry)

        monkeypatch.setattr(commands, "file_damage", damage)
        code, lines = verified(capsys, run)
        assert code == 0
        assert lines[1] == f"{run}/checkpoints/200: was deleted meanwhile, by its run"
        assert lines[-1] == "nothing is damaged"

    def test_progress_is_told_apart_from_the_result(self, run: Path, capsys: Captured) -> None:
        assert main(["verify", str(run), "--newest"]) == 0
        told = capsys.readouterr().err.splitlines()
        assert told[0].startswith(f"reading {run}/checkpoints/300: ")


class TestCommandLine:
    def test_help(self, capsys: Captured) -> None:
        assert main([]) == 2
        assert "ls|verify|export" in capsys.readouterr().out
        for command in ("ls", "verify", "export"):
            with pytest.raises(SystemExit) as caught:
                main([command, "--help"])
            assert caught.value.code == 0
            assert f"$ python -m training.checkpoint {command} runs/cpt" in capsys.readouterr().out

    def test_looking_needs_no_torch(self, run: Path) -> None:
        code = (
            "import sys; from training.checkpoint.__main__ import main\n"
            f"assert main(['ls', {str(run)!r}]) == main(['verify', {str(run)!r}]) == 0\n"
            "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def test_a_reader_that_leaves(self, run: Path) -> None:
        command = f"{sys.executable} -m training.checkpoint ls {' '.join([str(run)] * 200)} | head -1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (141, "")


class TestWhatCannotBeLookedAt:
    def test_a_path_is_told_and_others_are_listed(self, run: Path, capsys: Captured) -> None:
        private, long = run.parent / "private", run.parent / ("n" * 300)
        private.mkdir()
        with locked(private):
            for asked, told in ((private / "x", private / "x"), (private, private / "checkpoints")):
                for command in ("ls", "verify"):
                    assert main([command, str(asked), str(long), str(run)]) == 2
                    printed = capsys.readouterr()
                    assert f"error: {told} can't be looked at: Permission denied\n" in printed.err
                    assert f"error: {long} can't be looked at: File name too long\n" in printed.err
                    assert str(run / "checkpoints") in printed.out

    def test_checkpoints_that_may_not_be_listed(self, run: Path, capsys: Captured) -> None:
        with locked(run / "checkpoints"):
            assert main(["ls", str(run)]) == 2
        assert f"{run / 'checkpoints'} can't be looked at: Permission denied" in capsys.readouterr().err

    def test_a_checkpoint_is_damaged(self, run: Path, capsys: Captured) -> None:
        root = run / "checkpoints"
        # Neither a size nor what it leads to.
        (root / "100" / "extra").symlink_to("extra")
        with locked(root / "300", root / "200" / "MANIFEST.json"):
            found = listed(capsys, run, code=1)
            code, lines = verified(capsys, run)
        assert [entry["state"] for entry in found] == ["damaged", "damaged", "ok"]
        assert [entry["problem"] for entry in found[:2]] == ["MANIFEST.json: can't be read: Permission denied"] * 2
        assert code == 1
        assert f"  {root / '300' / 'MANIFEST.json'}: can't be read: Permission denied" in lines

    def test_checkpoints_whose_names_alone_are_known(self, run: Path, capsys: Captured) -> None:
        root = run / "checkpoints"
        with locked(root):
            root.chmod(0o444)
            found = listed(capsys, run, code=1)
            code, lines = verified(capsys, run, "--newest")
        assert [entry["problem"] for entry in found] == ["MANIFEST.json: can't be read: Permission denied"] * 3
        assert (code, lines[0]) == (1, f"{root / '300'}: DAMAGED")

    def test_nobody_waits_for_a_fifo(self, run: Path, capsys: Captured) -> None:
        for path in (run / "checkpoints" / "300" / "MANIFEST.json", shard(run, 200)):
            path.unlink()
            os.mkfifo(path)
        os.mkfifo(run / "run.json")
        found = listed(capsys, run, code=1)
        assert found[0]["problem"] == "MANIFEST.json: can't be read: it is a FIFO"
        assert found[1]["problem"] == f"{shard(run, 200).name}: is no file"
        assert verified(capsys, run)[0] == 1
