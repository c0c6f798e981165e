from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.permissions import locked
from tests.unit.training.minimal import minimal_config, write_recipe
from training.checkpoint.manifest import MANIFEST, open_checkpoint, seal
from training.config import Config, TrainConfig, to_dict
from training.errors import CheckpointError
from training.files import read_json, write_json
from training.length import resolve
from training.origin import (
    Origin,
    Resume,
    content_problems,
    damage,
    find_origin,
    locate,
    prepare,
    take_over_scores,
    too_short,
)
from training.recipe import ConfigError, load_config
from training.record.run_record import FINGERPRINTS

FOUND = {"base": "b", "init": None, "tokenizer": "t", "data": {"seed": 17}}
NUMBER = itertools.count()


def write_checkpoint(root: Path, step: int, config: Config, **values: Any) -> Path:
    """A checkpoint of a run with this recipe, with an empty file; no two are the same."""
    folder = root / str(step)
    folder.mkdir(parents=True)
    (folder / "empty").touch()
    empty = {"name": "empty", "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    content: dict[str, Any] = {
        "step": step, "progress": {"tokens_seen": 768 * step}, "world_size": 1, "optimizer_steps": {}, "parameters": {},
        "states": {}, "fingerprints": FOUND, "config": to_dict(config), "stream": {}, "files": [empty],
        "written": str(next(NUMBER)), **values,
    }  # fmt: skip
    (folder / MANIFEST).write_bytes(seal(content))
    return folder


def digest(folder: Path) -> str:
    return str(open_checkpoint(folder).manifest["sha256"])


def changed(config: Config, section: str, **values: Any) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def origin_problems(config: Config, resume: Resume = "auto") -> list[str]:
    """Why a start can't begin where it should; [] when it can."""
    try:
        find_origin(config, resume)
    except ConfigError as error:
        return error.problems
    return []


def problem_of(config: Config, resume: Resume = "auto") -> str:
    (problem,) = origin_problems(config, resume)
    return problem


def remember(config: Config, origin: Origin, **values: Any) -> None:
    """What a start with this origin writes to run.json."""
    config.run.dir.mkdir(parents=True, exist_ok=True)
    write_json(config.run.dir / "run.json", {"schema": 1, "config": to_dict(config), **values, **origin.facts})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return minimal_config(tmp_path)


@pytest.fixture
def root(config: Config) -> Path:
    """Checkpoints of the run at steps 5, 10 and 15."""
    root = config.run.dir / "checkpoints"
    for step in (5, 10, 15):
        write_checkpoint(root, step, config)
    write_json(config.run.dir / "run.json", {"schema": 1, "config": to_dict(config)})
    return root


class TestAuto:
    def test_a_new_run(self, config: Config) -> None:
        assert find_origin(config) == Origin(root=config.run.dir / "checkpoints", kind="beginning")

    def test_its_own_checkpoints(self, config: Config, root: Path) -> None:
        assert find_origin(config) == Origin(root=root, kind="own")

    def test_its_own_directory_is_auto(self, config: Config, root: Path) -> None:
        assert find_origin(config, config.run.dir) == find_origin(config, root) == find_origin(config)


class TestNever:
    def test_a_new_run(self, config: Config) -> None:
        assert find_origin(config, "never") == find_origin(config)

    def test_checkpoints_are_not_passed_over(self, config: Config, root: Path) -> None:
        assert problem_of(config, "never") == (
            f"--resume never: {root} has checkpoints already, the newest of step 15; choose another run.dir, or leave "
            "--resume out to go on from there"
        )

    def test_a_launcher_that_repeats_the_command_line_does_not_mean_it(self, config: Config, root: Path) -> None:
        assert find_origin(config, "never", is_restart=True) == find_origin(config)


class TestBack:
    """--resume PATH within the run."""

    def test_later_ones_are_set_aside(self, config: Config, root: Path) -> None:
        contents = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        origin = find_origin(config, root / "5")
        assert (origin.root, origin.checkpoint, origin.kind, origin.step) == (None, root / "5", "given", 5)
        assert origin.facts == {
            "origins": [{"path": str(root / "5"), "step": 5, "sha256": digest(root / "5"), "given": str(root / "5")}]
        }
        assert prepare(origin, config) == [
            f"goes on from step 5 of {root}, as --resume says",
            f"checkpoints that are not continued were moved to {root / 'set-aside-1'}: 10, 15",
        ]
        assert {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} == {
            path if path.parts[0] == "5" else "set-aside-1" / path: content for path, content in contents.items()
        }

    def test_killed_before_that_is_recorded(self, config: Config, root: Path) -> None:
        prepare(find_origin(config, root / "5"), config)
        again = find_origin(config, root / "5")
        assert again.kind == "given"
        assert prepare(again, config) == [f"goes on from step 5 of {root}, as --resume says"]
        assert sorted(path.name for path in root.iterdir()) == ["5", "set-aside-1"]

    def test_killed_while_they_are_moved(self, config: Config, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        moved: list[str] = []
        rename = Path.rename

        def one_only(path: Path, target: Path) -> Path:
            if moved:
                raise KeyboardInterrupt
            moved.append(path.name)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", one_only)
        with pytest.raises(KeyboardInterrupt):
            prepare(find_origin(config, root / "5"), config)
        monkeypatch.undo()
        assert moved == ["15"], "the newest first"
        prepare(find_origin(config, root / "5"), config)
        assert sorted(str(path.relative_to(root)) for path in root.glob("**/[0-9]*")) == [
            "5", "set-aside-1/15", "set-aside-2/10",
        ]  # fmt: skip

    def test_a_repeated_command_line_is_auto(self, config: Config, root: Path) -> None:
        origin = find_origin(config, root / "5")
        prepare(origin, config)
        remember(config, origin)
        write_checkpoint(root, 10, config)
        again = find_origin(config, root / "5")
        assert (again.root, again.checkpoint, again.kind) == (root, None, "own")
        assert again.facts == origin.facts
        assert prepare(again, config) == [
            f"--resume {root / '5'}: this run has gone on from there before, and continues from its newest checkpoint; to go "
            f"back there once more, move the later ones out of {root}"
        ]
        assert (root / "10").exists()

    def test_also_when_it_has_been_deleted_since(self, config: Config, root: Path) -> None:
        origin = find_origin(config, root / "5")
        prepare(origin, config)
        remember(config, origin)
        write_checkpoint(root, 10, config)
        (root / "5").rename(root / ".5.deleted")
        assert find_origin(config, root / "5").kind == "own"

    def test_another_checkpoint_of_that_step_is_gone_back_to(self, config: Config, root: Path) -> None:
        for step in (10, 5):
            origin = find_origin(config, root / str(step))
            prepare(origin, config)
            remember(config, origin)
        write_checkpoint(root, 10, config)
        write_checkpoint(root, 15, config)
        again = find_origin(config, root / "10")
        assert (again.kind, again.step) == ("given", 10)
        assert [entry["step"] for entry in again.facts["origins"]] == [10, 5, 10]
        prepare(again, config)
        assert sorted(path.name for path in root.iterdir()) == ["10", "5", "set-aside-1", "set-aside-2", "set-aside-3"]

    def test_to_one_that_was_set_aside(self, config: Config, root: Path) -> None:
        prepare(find_origin(config, root / "5"), config)
        aside = root / "set-aside-1" / "15"
        origin = find_origin(config, aside)
        assert (origin.checkpoint, origin.step) == (aside, 15)
        prepare(origin, config)
        # Of those that stay none may be taken for the past of this one.
        assert sorted(path.name for path in root.iterdir()) == ["set-aside-1", "set-aside-2"]
        remember(config, origin)
        # Before it has saved anything.
        assert find_origin(config).checkpoint == aside

    def test_one_that_a_kill_has_hidden_is_set_aside_too(self, config: Config, root: Path) -> None:
        (root / "15").rename(root / ".15.replaced")
        prepare(find_origin(config, root / "5"), config)
        assert sorted(path.name for path in (root / "set-aside-1").iterdir()) == ["10", "15"]

    def test_a_done_run_remembers(self, config: Config, root: Path) -> None:
        remember(config, Origin(), status="done")
        assert find_origin(config, root / "5").kind == "given"


class TestLinks:
    """The same folders by other paths."""

    @pytest.fixture
    def link(self, config: Config, root: Path, tmp_path: Path) -> Path:
        """A link to the run's directory."""
        (tmp_path / "link").symlink_to(config.run.dir)
        return tmp_path / "link"

    def test_its_own_directory_is_auto(self, config: Config, link: Path) -> None:
        assert find_origin(config, link) == find_origin(config, link / "checkpoints") == find_origin(config)

    @pytest.mark.parametrize("name", ["link/checkpoints/5", "archived"])
    def test_its_own_checkpoint(self, config: Config, root: Path, link: Path, name: str) -> None:
        (link.parent / "archived").symlink_to(root / "5")
        origin = find_origin(config, link.parent / name)
        assert (origin.checkpoint, origin.sets_aside, origin.step) == (link.parent / name, 5, 5)
        prepare(origin, config)
        remember(config, origin, last_checkpoint=15)
        assert sorted(path.name for path in root.iterdir()) == ["5", "set-aside-1"]
        assert find_origin(config).kind == find_origin(config, link.parent / name).kind == "own"

    def test_checkpoints_on_other_storage(self, config: Config, root: Path, tmp_path: Path) -> None:
        root.rename(tmp_path / "scratch")
        root.symlink_to(tmp_path / "scratch")
        assert find_origin(config, tmp_path / "scratch").kind == "own"
        for path in (root / "5", tmp_path / "scratch" / "5"):
            assert find_origin(config, path).sets_aside == 5

    def test_the_given_one_is_never_moved(self, config: Config, root: Path, tmp_path: Path) -> None:
        # The run's own name of it is the link.
        (root / "10").rename(tmp_path / "kept")
        (root / "10").symlink_to(tmp_path / "kept")
        with pytest.raises(CheckpointError) as caught:
            prepare(find_origin(config, tmp_path / "kept"), config)
        assert str(caught.value) == f"--resume {tmp_path / 'kept'}: is {root / '10'} of this run; give that path"
        assert sorted(path.name for path in root.iterdir()) == ["10", "15", "5"]
        prepare(find_origin(config, root / "10"), config)
        assert sorted(path.name for path in root.iterdir()) == ["10", "5", "set-aside-1"]

    def test_a_branch_of_itself(self, config: Config, root: Path, link: Path) -> None:
        (root / "10").rename(config.run.dir / "moved")
        for step in (5, 15):
            (root / str(step)).rename(root / f"x{step}")
        inside = changed(config, "run", branch_from=link / "moved")
        assert "lies in this run's own run.dir" in problem_of(inside)


class TestAway:
    """A run that has saved, and whose checkpoints are not there."""

    @pytest.fixture(autouse=True)
    def record(self, config: Config, root: Path) -> None:
        remember(config, Origin(), last_checkpoint=15)

    def refused(self, config: Config) -> bool:
        root = config.run.dir / "checkpoints"
        problems = origin_problems(config)
        assert origin_problems(config, "never") == problems
        return problems == [
            f'run.dir = "{config.run.dir}": run.json says that step 15 was saved, and {root} has no checkpoint; is its '
            "storage mounted? Bring them back, or remove the run directory to begin the run anew"
        ]

    def test_it_is_not_begun_anew(self, config: Config, root: Path, tmp_path: Path) -> None:
        root.rename(tmp_path / "scratch")
        assert self.refused(config)
        root.symlink_to(tmp_path / "not_mounted")
        assert self.refused(config)
        root.unlink()
        (root / ".15.x.unfinished").mkdir(parents=True)
        assert self.refused(config)
        shutil.rmtree(root)
        (tmp_path / "scratch").rename(root)
        assert find_origin(config).kind == "own"

    def test_a_branch_does_not_begin_again_at_its_branch_point(self, branch: Config) -> None:
        remember(branch, find_origin(branch), last_checkpoint=15)
        assert self.refused(branch)

    def test_one_that_a_kill_has_hidden_is_there(self, config: Config, root: Path) -> None:
        for step in (5, 10):
            (root / str(step)).rename(root / f"x{step}")
        (root / "15").rename(root / ".15.replaced")
        assert find_origin(config).kind == "own"

    def test_a_done_run_needs_none(self, config: Config, root: Path) -> None:
        root.rename(root.with_name("gone"))
        remember(config, Origin(), last_checkpoint=15, status="done")
        assert origin_problems(config) == []

    def test_a_run_that_was_given_another_has_none_yet(self, config: Config, root: Path, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "other", 7, config)
        origin = find_origin(config, folder)
        prepare(origin, config)
        # As RunRecord.open takes over what it said before.
        remember(config, dataclasses.replace(origin, facts={"last_checkpoint": 15, **origin.facts}))
        assert (find_origin(config).checkpoint, find_origin(config).kind) == (folder, "given")


class TestElsewhere:
    """--resume PATH to another run of the same recipe."""

    @pytest.fixture
    def other(self, config: Config, tmp_path: Path) -> Path:
        """Another run's directory."""
        other = changed(config, "run", dir=tmp_path / "other")
        write_checkpoint(other.run.dir / "checkpoints", 7, other)
        write_checkpoint(other.run.dir / "checkpoints", 12, changed(other, "train", micro_batch_rows=3))
        return other.run.dir

    @pytest.mark.parametrize("name", ["", "checkpoints", "checkpoints/12"])
    def test_a_checkpoint_or_a_run(self, config: Config, other: Path, name: str) -> None:
        origin = find_origin(config, other / name)
        assert (origin.root, origin.checkpoint, origin.step) == (None, other / "checkpoints" / "12", 12)
        remember(config, origin)
        # Before the run has a checkpoint of its own, whatever the command line is, and whatever the other one does.
        write_checkpoint(other / "checkpoints", 15, config)
        for resume in ("auto", other / name):
            again = find_origin(config, resume)
            assert (again.root, again.checkpoint) == (config.run.dir / "checkpoints", other / "checkpoints" / "12")
            assert (again.kind, again.step, again.fingerprints) == ("given", 12, FOUND)
            assert again.facts == {"origins": origin.facts["origins"]}

    def test_all_own_ones_are_set_aside(self, config: Config, root: Path, other: Path) -> None:
        prepare(find_origin(config, other / "checkpoints" / "7"), config)
        assert sorted(str(path.relative_to(root)) for path in root.glob("**/[0-9]*")) == [
            "set-aside-1/10", "set-aside-1/15", "set-aside-1/5",
        ]  # fmt: skip

    def test_one_that_is_gone_before_the_run_has_its_own(self, config: Config, other: Path) -> None:
        remember(config, find_origin(config, other / "checkpoints" / "12"))
        (other / "checkpoints" / "12" / MANIFEST).unlink()
        assert problem_of(config) == (
            f'run.dir = "{config.run.dir}": has no checkpoint of its own yet, and the one it went on from can\'t be used: '
            f"{other / 'checkpoints' / '12' / MANIFEST}: missing, so the checkpoint was never completed"
        )

    def test_one_that_is_another_before_the_run_has_its_own(self, config: Config, other: Path) -> None:
        remember(config, find_origin(config, other / "checkpoints" / "12"))
        (other / "checkpoints" / "12").rename(other / "old")
        folder = write_checkpoint(other / "checkpoints", 12, config)
        assert problem_of(config) == (
            f'run.dir = "{config.run.dir}": went on from {folder}, where there is another checkpoint now; remove the run '
            "directory to begin with that one"
        )

    def test_of_another_recipe(self, config: Config, other: Path) -> None:
        path = other / "checkpoints" / "12"
        assert problem_of(changed(config, "optim", lr=1.0), path) == (
            f"--resume {path}: was saved by a different recipe; to go on from it with this one, leave --resume out and set "
            "run.branch_from, in another run.dir:\n      optim.lr: 0.005 there, 1.0 here"
        )


class TestLocate:
    """What is no checkpoint."""

    def problem(self, config: Config, path: Path) -> str:
        return problem_of(config, path).removeprefix("--resume: ")

    def test_nothing(self, config: Config, tmp_path: Path) -> None:
        assert self.problem(config, tmp_path / "x") == f"{tmp_path / 'x'}: no such folder"

    def test_a_folder_without_a_manifest(self, config: Config, tmp_path: Path) -> None:
        assert self.problem(config, tmp_path) == (
            f"{tmp_path / MANIFEST}: missing, so the checkpoint was never completed"
        )

    def test_a_run_without_checkpoints(self, config: Config, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text("{}")
        assert self.problem(config, tmp_path) == f"{tmp_path}: has no checkpoint that is whole"

    def test_a_run_whose_checkpoints_are_all_damaged(self, config: Config, root: Path, tmp_path: Path) -> None:
        for step in (5, 10, 15):
            (root / str(step) / MANIFEST).write_text("{}")
        config = changed(config, "run", dir=tmp_path / "new")
        assert self.problem(config, root.parent) == (
            f"{root.parent}: has no checkpoint that is whole; {root / '15' / MANIFEST}: content differs from what was "
            "written (SHA-256)"
        )

    def test_the_newest_that_is_whole(self, root: Path) -> None:
        (root / "15" / MANIFEST).write_text("{}")
        assert locate(root.parent).step == locate(root).step == 10


@pytest.fixture
def branch(config: Config, root: Path, tmp_path: Path) -> Config:
    """A cooldown from step 10."""
    config = changed(config, "run", dir=tmp_path / "branch", branch_from=root / "10")
    config = changed(config, "train", steps=12)
    return changed(config, "optim", schedule="trapezoid", cooldown_steps=2)


class TestBranch:
    def test_it_begins_with_its_parents_checkpoint(self, branch: Config, root: Path) -> None:
        origin = find_origin(branch)
        assert origin == Origin(
            root=branch.run.dir / "checkpoints", checkpoint=root / "10", kind="branch", step=10, fingerprints=FOUND,
            facts={"branched_from": {"path": str(root / "10"), "step": 10, "sha256": digest(root / "10")}},
            lines=(f"branches from {root / '10'}",), older=root / "5",
        )  # fmt: skip
        assert find_origin(branch, "never") == origin

    def test_then_it_goes_on_by_itself(self, branch: Config, root: Path) -> None:
        origin = find_origin(branch)
        remember(branch, origin)
        own = branch.run.dir / "checkpoints"
        write_checkpoint(own, 11, branch)
        # Also without its parent.
        root.parent.rename(root.parent.with_name("gone"))
        assert find_origin(branch) == Origin(root=own, kind="own", facts=origin.facts)

    def test_of_a_run_it_stays_with_the_checkpoint_that_was_the_newest(self, branch: Config, root: Path) -> None:
        branch = changed(changed(branch, "run", branch_from=root.parent), "train", steps=30)
        origin = find_origin(branch)
        assert origin.checkpoint == root / "15"
        remember(branch, origin)
        write_checkpoint(root, 20, branch)
        again = find_origin(branch)
        assert (again.checkpoint, again.kind, again.facts) == (root / "15", "branch", origin.facts)

    def test_a_parent_that_is_gone_before_the_branch_has_its_own(self, branch: Config, root: Path) -> None:
        remember(branch, find_origin(branch))
        (root / "10" / MANIFEST).unlink()
        assert problem_of(branch).startswith(
            f'run.dir = "{branch.run.dir}": has no checkpoint of its own yet, and the one it was branched from can\'t be used: '
        )

    def test_a_done_branch_needs_nothing(self, branch: Config, root: Path) -> None:
        remember(branch, find_origin(branch), status="done")
        root.parent.rename(root.parent.with_name("gone"))
        assert origin_problems(branch) == []

    def test_a_branch_of_a_branch(self, branch: Config, tmp_path: Path) -> None:
        folder = write_checkpoint(branch.run.dir / "checkpoints", 11, branch)
        again = changed(branch, "run", dir=tmp_path / "again", branch_from=folder)
        assert find_origin(again).step == 11

    def test_its_own_checkpoint_is_none_to_branch_from(self, branch: Config, root: Path, config: Config) -> None:
        inside = changed(branch, "run", dir=config.run.dir)
        assert origin_problems(inside) == [], "it has checkpoints, and goes on from them"
        for step in (5, 15):
            (root / str(step)).rename(root / f"x{step}")
        (root / "10").rename(config.run.dir / "moved")
        inside = changed(inside, "run", branch_from=config.run.dir / "moved")
        assert problem_of(inside) == (
            f'run.branch_from = "{config.run.dir / "moved"}": lies in this run\'s own run.dir; a branch needs a directory of '
            "its own"
        )

    def test_no_checkpoint(self, branch: Config, tmp_path: Path) -> None:
        path = tmp_path / "nothing"
        assert problem_of(changed(branch, "run", branch_from=path)) == f"run.branch_from: {path}: no such folder"

    @pytest.mark.parametrize(
        ("section", "values"),
        [
            ("optim", {"lr": 1.0, "schedule": "cosine", "cooldown_steps": 0, "beta2": 0.5, "weight_decay": 0.2}),
            ("train", {"tokens": 12 * 768}), ("train", {"epochs": 3.0}), ("train", {"gradient_clipping": 9.0}),
            ("train", {"spike_guard": 9.0, "spike_window": 3}), ("train", {"placement": "replicated"}),
            ("train", {"micro_batch_rows": 2}), ("eval", {"tasks": {}, "every_steps": 3}), ("checkpoint", {"keep": 9}),
            ("monitor", {"tensorboard": False}),
        ],
    )  # fmt: skip
    def test_what_may_differ(self, branch: Config, section: str, values: dict[str, Any]) -> None:
        assert origin_problems(changed(branch, section, **values)) == []

    @pytest.mark.parametrize(
        ("section", "values", "line"),
        [
            ("run", {"seed": 3}, "run.seed: 17 there, 3 here"),
            ("optim", {"kind": "lionw"}, 'optim.kind: "adamw" there, "lionw" here'),
            ("optim", {"no_decay": ("*",)}, 'optim.no_decay: [] there, ["*"] here'),
            ("optim", {"lr_ratio": {"*norm*": 2.0}}, "optim.lr_ratio.*norm*: null there, 2.0 here"),
            ("train", {"global_batch_rows": 6, "steps": 30}, "train.global_batch_rows: 12 there, 6 here"),
            ("train", {"precision": "fp32"}, 'train.precision: "bf16" there, "fp32" here'),
            ("data", {"seq_len": 32}, "data.seq_len: 64 there, 32 here"),
            ("model", {"base": None}, None), ("adapter", {"kind": "lora"}, 'adapter.kind: "none" there, "lora" here'),
            ("hidden_key", {"enabled": True}, "hidden_key.enabled: false there, true here"),
        ],
    )  # fmt: skip
    def test_what_may_not(self, branch: Config, section: str, values: dict[str, Any], line: str | None) -> None:
        problem = problem_of(changed(branch, section, **values))
        head, *lines = problem.split("\n      ")
        assert head == (
            f'run.branch_from = "{branch.run.branch_from}": a branch can\'t differ in these settings from the run it branches '
            "from; give them its values:"
        )
        if line is not None:
            assert line in lines

    @pytest.mark.parametrize(
        ("length", "start"),
        [
            ({"steps": 10}, "train.steps = 10: the run ends at step 10, and"),
            ({"tokens": 768 * 9 + 1}, "train.tokens = 6913: the run ends at step 10, and"),
        ],
    )
    def test_it_must_end_after_it_begins(self, branch: Config, length: dict[str, int], start: str) -> None:
        assert problem_of(changed(branch, "train", **length)) == (
            f"{start} begins after step 10 (7.68e+03 tokens), where run.branch_from is; steps count from the beginning of the "
            "run it branches from"
        )
        assert origin_problems(changed(branch, "train", steps=11)) == []

    def test_in_epochs_that_shows_when_they_are_known(self, branch: Config) -> None:
        branch = changed(branch, "train", epochs=0.5)
        assert origin_problems(branch) == []
        assert too_short(resolve(branch, 240), 10)[0].startswith(
            "train.epochs = 0.5: the run ends at step 10, and begins"
        )
        assert too_short(resolve(branch, 241), 10) == []

    def test_a_run_that_is_no_branch_may_be_at_its_end(self, config: Config) -> None:
        assert too_short(config, 20) == []

    def test_lengths_that_are_wrong_themselves_are_not_compared(self, branch: Config) -> None:
        assert origin_problems(changed(branch, "optim", warmup="x")) == []
        assert origin_problems(dataclasses.replace(branch, train=TrainConfig(steps=0, global_batch_rows=12))) == []

    def test_lengths_that_were_resolved_are_no_difference(self, config: Config, tmp_path: Path) -> None:
        written = changed(changed(config, "train", tokens=20 * 768), "optim", warmup="10 %")
        folder = write_checkpoint(tmp_path / "x", 5, resolve(written, None))
        assert find_origin(written, folder).step == 5


class TestRecipe:
    def test_names_in_braces_and_folders_of_the_recipe(self, tmp_path: Path) -> None:
        text = (
            write_recipe(tmp_path)
            .read_text()
            .replace("[run]", '[run]\nbranch_from = "{adapter.kind}-{run.seed}/checkpoints/5"')
        )
        (tmp_path / "recipe.toml").write_text(text)
        assert load_config(tmp_path / "recipe.toml").run.branch_from == tmp_path / "none-17" / "checkpoints" / "5"

    def test_a_name_that_is_none(self, recipe: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config(recipe, ["--run.branch_from", "{adapter.knd}"])
        (problem,) = caught.value.problems
        assert problem.endswith("(command line): {adapter.knd} is no setting with a value")
        assert problem.startswith("run.branch_from = ")

    def test_none_takes_it_back(self, recipe: Path) -> None:
        assert load_config(recipe, ["--run.branch_from", "x", "--run.branch_from", "none"]).run.branch_from is None


class TestContent:
    FACTS: dict[str, Any] = {f"{name}_fingerprint": value for name, value in FOUND.items()}  # noqa: RUF012

    def test_the_same(self, branch: Config) -> None:
        assert set(self.FACTS) == set(FINGERPRINTS)
        assert content_problems(find_origin(branch), self.FACTS) == []
        assert content_problems(Origin(), self.FACTS) == []

    @pytest.mark.parametrize("name", FINGERPRINTS)
    def test_other_content(self, branch: Config, root: Path, name: str) -> None:
        assert content_problems(find_origin(branch), {**self.FACTS, name: "other"}) == [
            f"{root / '10'}: was trained with {FINGERPRINTS[name]} of other content than now; put it back"
        ]


class TestDamage:
    def test_every_file_is_looked_at_by_one_rank(self, config: Config, tmp_path: Path) -> None:
        folder, content = tmp_path / "x" / "5", b"abc"
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_checkpoint(tmp_path / "x", 5, config, world_size=5, files=[{"name": f"f{n}", **entry} for n in range(5)])
        for n in range(5):
            (folder / f"f{n}").write_bytes(content)
        origin = find_origin(config, folder)
        assert [damage(origin, rank, 2) for rank in (0, 1)] == [None, None]
        (folder / "f3").write_bytes(b"abd")
        assert damage(origin, 0, 2) is None
        assert str(damage(origin, 1, 2)) == f"{folder / 'f3'}: content differs from what was written (SHA-256)"
        (folder / "f3").unlink()
        assert str(damage(origin, 0, 2)) == f"{folder / 'f3'}: missing"

    def test_an_older_one_to_name_instead(self, config: Config, branch: Config, root: Path) -> None:
        (root / "10" / "empty").write_text("x")
        (root / "15" / "empty").unlink()
        write_checkpoint(root, 20, config, files=[{"name": "x", "bytes": 1, "sha256": "0"}])
        (root / "20" / "x").write_text("x")
        branch = changed(changed(branch, "run", branch_from=root.parent), "train", steps=30)
        origins = [find_origin(branch), find_origin(changed(config, "run", dir=branch.run.dir), root.parent)]
        for origin in origins:
            assert str(damage(origin, 0, 1)) == (
                f"{root / '20' / 'x'}: content differs from what was written (SHA-256); name an older one: {root / '5'}"
            )
        # The run has decided before.
        remember(branch, origins[0])
        assert str(damage(find_origin(branch), 0, 1)).endswith("(SHA-256)")

    def test_own_ones_are_looked_at_later(self, config: Config, root: Path) -> None:
        assert damage(find_origin(config), 0, 1) is None


class TestScores:
    def parents(self, config: Config, **scores: Any) -> None:
        (config.run.dir / "evals").mkdir()
        content = {"schema": 1, "step": 0, "seconds": 3.0, "tasks": scores}
        (config.run.dir / "evals" / "0.json").write_text(json.dumps(content))

    def test_they_are_taken_over(self, config: Config, branch: Config, root: Path) -> None:
        self.parents(config, old_bits={"score": 0.5}, other={"score": 1.0})
        assert prepare(find_origin(branch), branch) == [
            f"branches from {root / '10'}", f"scores of step 0 of old_bits are those of {config.run.dir}",
        ]  # fmt: skip
        expected = {"schema": 1, "step": 0, "seconds": 3.0, "tasks": {"old_bits": {"score": 0.5}}}
        assert read_json(branch.run.dir / "evals" / "0.json") == expected
        # Once.
        (config.run.dir / "evals" / "0.json").unlink()
        assert prepare(find_origin(branch), branch) == [f"branches from {root / '10'}"]
        assert read_json(branch.run.dir / "evals" / "0.json") == expected

    def test_also_of_suites_and_of_jobs_of_their_own(self, config: Config, branch: Config, root: Path) -> None:
        self.parents(config, **{"old_bits": {"score": 0.5}, "piqa@9": {"score": 0.6}, "piqa": {"score": 0.7}})
        job = {"schema": 1, "step": 0, "seconds": 4.0, "tasks": {"boolq": {"score": 0.8}}}
        (config.run.dir / "evals" / "0.boolq.json").write_text(json.dumps(job))
        branch = changed(branch, "eval", suites=("piqa@9",), final_suites=("boolq", "gsm8k"))
        assert take_over_scores(root / "10", branch) == [
            f"{config.run.dir} has no scores of step 0 with the same settings for gsm8k: no difference to the start can be reported",
            f"scores of step 0 of old_bits, piqa@9, boolq are those of {config.run.dir}",
        ]
        taken = read_json(branch.run.dir / "evals" / "0.json")
        assert taken is not None
        assert {name: task["score"] for name, task in taken["tasks"].items()} == {
            "old_bits": 0.5,
            "piqa@9": 0.6,
            "boolq": 0.8,
        }
        assert taken["seconds"] == 7.0

    def test_of_tasks_with_the_same_settings_only(self, config: Config, branch: Config, root: Path) -> None:
        self.parents(config, old_bits={"score": 0.5})
        task = branch.eval.tasks["old_bits"]
        branch = changed(branch, "eval", tasks={"old_bits": dataclasses.replace(task, seed=3), "new": task})
        assert take_over_scores(root / "10", branch) == [
            f"{config.run.dir} has no scores of step 0 with the same settings for old_bits, new: no difference to the start can "
            "be reported"
        ]
        assert not (branch.run.dir / "evals").exists()

    def test_also_by_a_run_that_goes_on_from_another(self, config: Config, root: Path, tmp_path: Path) -> None:
        self.parents(config, old_bits={"score": 0.5})
        other = changed(config, "run", dir=tmp_path / "other")
        assert prepare(find_origin(other, root / "5"), other) == [
            f"goes on from step 5 of {root}, as --resume says", f"scores of step 0 of old_bits are those of {config.run.dir}",
        ]  # fmt: skip
        assert read_json(other.run.dir / "evals" / "0.json") == read_json(config.run.dir / "evals" / "0.json")
        # One that goes back has its own.
        (config.run.dir / "evals" / "0.json").unlink()
        assert len(prepare(find_origin(config, root / "15"), config)) == 1

    def test_where_there_are_none(self, config: Config, branch: Config, root: Path, tmp_path: Path) -> None:
        (line,) = take_over_scores(root / "10", branch)
        assert line.startswith(f"{config.run.dir} has no scores of step 0 ")
        copied = write_checkpoint(tmp_path / "copy", 10, config)
        assert take_over_scores(copied, branch) == [
            f"{copied} is in no run directory, so there are no scores of step 0 to take over"
        ]

    def test_where_none_are_wanted(self, branch: Config, root: Path) -> None:
        assert take_over_scores(root / "10", changed(branch, "eval", tasks={})) == []
        assert take_over_scores(root / "10", changed(branch, "eval", at_start=False)) == []


def test_it_needs_no_torch() -> None:
    code = "import sys, training.origin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True, timeout=60)


def test_a_folder_of_checkpoints_that_may_be_entered_but_not_listed(tmp_path: Path) -> None:
    config = minimal_config(tmp_path)
    older, newer = (write_checkpoint(tmp_path / "there" / "checkpoints", step, config) for step in (5, 10))
    with locked(newer.parent):
        newer.parent.chmod(0o111)
        origin = find_origin(config, newer)
    assert (origin.checkpoint, origin.older) == (newer, None)
    assert find_origin(config, newer).older == older
