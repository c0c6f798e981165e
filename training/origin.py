"""Where a start of a run begins: at its own newest checkpoint, at one that was given, or at the one it branches from.

All of it is decided from manifests and run.json, before any process group exists; whether the files of the chosen checkpoint
are what was written is looked at when they are loaded (training/resuming.py). No torch in here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipeline.files import unseen
from evals.errors import EvalError
from evals.results import merge_results, result_files
from training.checkpoint import storage
from training.checkpoint.manifest import Checkpoint, candidates, first_damage, folders, open_checkpoint
from training.config import Config, to_dict
from training.errors import CheckpointError
from training.files import read_json, sync_folder, write_json
from training.length import resolve
from training.recipe import ConfigError
from training.record.run_record import FINGERPRINTS, MAY_CHANGE, differences, listing, usable_record

Resume = Literal["auto", "never"] | Path
"""--resume: the newest good checkpoint, none, or this one."""

BRANCH_MAY_CHANGE = (
    *MAY_CHANGE,
    "run.branch_from",
    "train.steps",
    "train.tokens",
    "train.epochs",
    "train.gradient_clipping",
    "train.spike_",
    "optim",
    "eval",
)
"""Settings that may differ between a run and its branches."""

BRANCH_KEEPS = ("optim.kind", "optim.no_decay", "optim.lr_ratio")
"""Exceptions from these: states of an optimizer, and its numbers of updates by parameter group."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a start of a run begins: at the newest good checkpoint in `root`, else at `checkpoint`, else with nothing."""

    root: Path | None = None
    """The run's own checkpoints; None: they do not count."""
    checkpoint: Path | None = None
    """A checkpoint that must be good where none of `root` is."""
    kind: Literal["beginning", "own", "given", "branch"] = "beginning"
    """What that will be, as far as manifests tell."""
    step: int = 0
    """Steps done at `checkpoint`."""
    sets_aside: int | None = None
    """Own checkpoints of later steps than this one are not continued, and are to be moved before anything is saved."""
    fingerprints: Mapping[str, Any] = field(default_factory=dict)
    """Of base, adapter to start with, tokenizer and data, as the manifest of `checkpoint` has them where it will be used."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What run.json remembers of all this: branched_from and origins, and that an earlier last_checkpoint is none any more."""
    older: Path | None = None
    """The next older checkpoint beside the one that was asked for, for whoever has to name another one."""
    lines: tuple[str, ...] = ()
    """What is to be said to whoever started the run."""


def find_origin(config: Config, resume: Resume = "auto", *, is_restart: bool = False) -> Origin:
    """Where a start with this command line begins; nothing is changed.

    Args:
        config: whose run directory fits.
        resume: what --resume says.
        is_restart: the launcher repeats the command line, so that `never` was meant for its first start.

    Raises:
        ConfigError: it can't begin there.
    """
    record = usable_record(config.run.dir)
    root = config.run.dir / "checkpoints"
    # The same folder may have several paths.
    if isinstance(resume, Path) and _real(resume) not in (_real(config.run.dir), _real(root)):
        return _given(config, resume, record, root)
    if resume == "never" and not is_restart and (own := folders(root)):
        raise ConfigError(
            [f"--resume never: {root} has checkpoints already, the newest of step {own[0].name}; choose another run.dir, or "
             "leave --resume out to go on from there"]
        )  # fmt: skip
    return _as_before(config, record, root)


def is_among(checkpoint: Path, root: Path) -> bool:
    """Whether it is one of the checkpoints in `root`, by whatever path."""
    places = (checkpoint, _real(checkpoint))
    return any(path.name.isdigit() and _real(path.parent) == _real(root) for path in places)


def _as_before(config: Config, record: Mapping[str, Any], root: Path, lines: tuple[str, ...] = ()) -> Origin:
    """The run's own newest checkpoint; before it has one, where it began before, or its branch point, or nothing."""
    facts = _facts(record)
    # What a run was given replaces what it began with; of its own checkpoints the newest one counts.
    start = next((known for known in facts.get("origins", [])[::-1] if not is_among(Path(known["path"]), root)), None)
    kind: Literal["given", "branch"] = "branch" if start is None else "given"
    start, older = start or facts.get("branched_from"), None
    if folders(root) or _has_hidden(root):
        return Origin(root=root, kind="own", facts=facts, lines=lines)
    if record.get("status") == "done":
        return Origin(root=root, facts=facts, lines=lines)
    if (saved := record.get("last_checkpoint")) is not None:
        raise ConfigError(
            [f'run.dir = "{config.run.dir}": run.json says that step {saved} was saved, and {root} has no checkpoint; is its '
             "storage mounted? Bring them back, or remove the run directory to begin the run anew"]
        )  # fmt: skip
    if start is None and config.run.branch_from is None:
        return Origin(root=root, facts=facts, lines=lines)
    if start is None:
        found = _branch_point(config)
        older = _older(found)
        facts |= {"branched_from": _entry(found)}
        lines += (f"branches from {found.path}",)
    else:
        found = _same_again(start, config, kind)
    return Origin(
        root=root, checkpoint=found.path, kind=kind, step=found.step,
        fingerprints=found.manifest["fingerprints"], facts=facts, older=older, lines=lines,
    )  # fmt: skip


def _given(config: Config, path: Path, record: Mapping[str, Any], root: Path) -> Origin:
    """The checkpoint that --resume names, unless this run has gone on from it before."""
    facts = _facts(record)
    origins = facts.get("origins", [])
    problem, found = None, None
    try:
        found = locate(path)
    except CheckpointError as error:
        problem = error
    repeated = next((known for known in origins if _is_repeated(known, path, found)), None)
    if repeated is not None:
        # A launcher that starts a run again repeats its command line.
        line = (
            f"--resume {path}: this run has gone on from there before, and continues from its newest checkpoint; to go back "
            f"there once more, move the later ones out of {root}"
        )
        return _as_before(config, record, root, (line,))
    if found is None:
        raise ConfigError([f"--resume: {problem}"]) from problem
    if lines := differences(found.manifest["config"], to_dict(config)):
        raise ConfigError(
            [f"--resume {path}: was saved by a different recipe; to go on from it with this one, leave --resume out and set "
             f"run.branch_from, in another run.dir:{listing(lines)}"]
        )  # fmt: skip
    is_own = is_among(found.path, root)
    facts |= {"origins": [*origins, _entry(found) | {"given": str(path)}]}
    if not is_own:
        facts |= {"last_checkpoint": None}
    return Origin(
        checkpoint=found.path, kind="given", step=found.step,
        # Those beside a checkpoint from elsewhere are of another history, and none may be taken for this one's.
        sets_aside=found.step if is_own else -1,
        fingerprints=found.manifest["fingerprints"], facts=facts, older=_older(found),
        lines=(f"goes on from step {found.step} of {found.path.parent}, as --resume says",),
    )  # fmt: skip


def _is_repeated(known: Mapping[str, Any], path: Path, found: Checkpoint | None) -> bool:
    """Whether --resume names what a run has begun with before, which may be gone by now."""
    is_same_path = known["given"] == str(path)
    if found is None or known["path"] != known["given"]:
        return is_same_path
    return bool(known["sha256"] == found.manifest["sha256"])


def _branch_point(config: Config) -> Checkpoint:
    """The checkpoint that run.branch_from names.

    Raises:
        ConfigError: it can't be used.
    """
    path = config.run.branch_from
    assert path is not None
    shown = f'run.branch_from = "{path}"'
    if any(_real(path).is_relative_to(_real(own)) for own in (config.run.dir, config.run.dir / "checkpoints")):
        raise ConfigError([f"{shown}: lies in this run's own run.dir; a branch needs a directory of its own"])
    try:
        found = locate(path)
    except CheckpointError as error:
        raise ConfigError([f"run.branch_from: {error}"]) from error
    lines = differences(found.manifest["config"], to_dict(config), BRANCH_MAY_CHANGE, BRANCH_KEEPS)
    if lines:
        raise ConfigError(
            [f"{shown}: a branch can't differ in these settings from the run it branches from; give them its values:"
             f"{listing(lines)}"]
        )  # fmt: skip
    if config.has_lengths() and (problems := too_short(resolve(config, None), found.step)):
        raise ConfigError(problems)
    return found


def too_short(config: Config, step: int) -> list[str]:
    """Why a run of this resolved length can't begin after `step` steps; [] when it can."""
    if config.run.branch_from is None or config.train.steps > step:
        return []
    train = config.train
    name = "tokens" if train.tokens is not None else "epochs" if train.epochs is not None else "steps"
    per_step = train.global_batch_rows * config.data.seq_len
    return [
        f"train.{name} = {getattr(train, name)}: the run ends at step {train.steps}, and begins after step {step} "
        f"({step * per_step:.3g} tokens), where run.branch_from is; steps count from the beginning of the run it branches from"
    ]


def _same_again(start: Mapping[str, Any], config: Config, kind: str) -> Checkpoint:
    """The checkpoint that the run began with before.

    Raises:
        ConfigError: it is not there any more.
    """
    what = "was branched from" if kind == "branch" else "went on from"
    try:
        found = open_checkpoint(Path(start["path"]))
    except CheckpointError as error:
        raise ConfigError(
            [
                f'run.dir = "{config.run.dir}": has no checkpoint of its own yet, and the one it {what} can\'t be used: {error}'
            ]
        ) from error
    if found.manifest["sha256"] != start["sha256"]:
        raise ConfigError(
            [f'run.dir = "{config.run.dir}": {what} {found.path}, where there is another checkpoint now; remove the run '
             "directory to begin with that one"]
        )  # fmt: skip
    return found


def locate(path: Path) -> Checkpoint:
    """The checkpoint that a path means: a checkpoint's folder, or the newest one of a run directory.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return _located(path)
    except OSError as error:
        raise CheckpointError(unseen(error)) from error


def _located(path: Path) -> Checkpoint:
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    root = path if folders(path) else path / "checkpoints"
    if not root.is_dir() and not (path / "run.json").exists():
        return open_checkpoint(path)
    damages = []
    for found in candidates(root):
        if isinstance(found, Checkpoint):
            return found
        damages.append(str(found))
    raise CheckpointError(f"{path}: has no checkpoint that is whole{'; ' if damages else ''}{'; '.join(damages[:1])}")


def content_problems(origin: Origin, facts: Mapping[str, Any]) -> list[str]:
    """What a run loads that has other content than what the checkpoint it begins with was trained on; [] when nothing has.

    Args:
        origin: of the run.
        facts: the entries of run.json that are in FINGERPRINTS.
    """
    return [
        f"{origin.checkpoint}: was trained with {what} of other content than now; put it back"
        for name, what in FINGERPRINTS.items()
        if (key := name.removesuffix("_fingerprint")) in origin.fingerprints and origin.fingerprints[key] != facts[name]
    ]


def damage(origin: Origin, rank: int, world_size: int) -> CheckpointError | None:
    """What is wrong with this rank's share of the files of the checkpoint that a start may have to begin with.

    Asked before anything is moved or recorded: a start that can't begin there leaves all as it was.
    """
    if origin.checkpoint is None:
        return None
    try:
        damage = first_damage(open_checkpoint(origin.checkpoint), rank, world_size)
    except CheckpointError as error:
        damage = str(error)
    if damage is None:
        return None
    return CheckpointError(damage if origin.older is None else f"{damage}; name an older one: {origin.older}")


def prepare(origin: Origin, config: Config) -> list[str]:
    """Do what must be done before a start that begins there: move checkpoints aside, take over step-0 scores.

    Only one process may do it, which holds the run's lock. What it is interrupted in is done by the next start.

    Returns:
        what to say about it.
    """
    lines, root = list(origin.lines), config.run.dir / "checkpoints"
    if origin.sets_aside is not None:
        # What an earlier start was killed in may hide one of them.
        storage.tidy_up(root)
        lines += set_aside_later(root, origin.sets_aside, stays=origin.checkpoint)
    if origin.checkpoint is not None and not is_among(origin.checkpoint, root):
        lines += take_over_scores(origin.checkpoint, config)
    return lines


def set_aside_later(root: Path, step: int, *, stays: Path | None = None) -> list[str]:
    """Move a run's checkpoints of later steps than this one out of the way, but never `stays`.

    Returns:
        what to say about it.

    Raises:
        CheckpointError: `stays` is one of them, by another path; nothing was moved.
    """
    later = [path for path in folders(root) if int(path.name) > step]
    if not later:
        return []
    if stays is not None and (same := next((path for path in later if path.samefile(stays)), None)):
        raise CheckpointError(f"--resume {stays}: is {same} of this run; give that path")
    steps = ", ".join(path.name for path in reversed(later))
    return [f"checkpoints that are not continued were moved to {set_aside(root, later)}: {steps}"]


def set_aside(root: Path, checkpoints: Sequence[Path]) -> Path:
    """Move some of a run's checkpoints, the newest first, into a new folder checkpoints/set-aside-<n> and return it.

    Whatever is left after a kill in the middle are checkpoints of one history.
    """
    folder = next(path for n in itertools.count(1) if not (path := root / f"set-aside-{n}").exists())
    folder.mkdir()
    for path in checkpoints:
        path.rename(folder / path.name)
    sync_folder(folder)
    sync_folder(root)
    return folder


def take_over_scores(checkpoint: Path, config: Config) -> list[str]:
    """Give a run the scores of step 0 that the run it goes on from has for the same tasks; forgetting is measured against them.

    Returns:
        what to say about it.
    """
    tasks = to_dict(config.eval.tasks)
    wanted = [*tasks, *(spec.name for spec in config.eval.specs(is_end=True))] if config.eval.at_start else []
    target = config.run.dir / "evals" / "0.json"
    if not wanted or target.exists():
        return []
    run = next((folder for folder in checkpoint.parents if (folder / "run.json").exists()), None)
    if run is None:
        return [f"{checkpoint} is in no run directory, so there are no scores of step 0 to take over"]
    theirs: Any = read_json(run / "run.json")
    for key in ("config", "eval", "tasks"):
        theirs = theirs.get(key) if isinstance(theirs, dict) else None
    theirs = theirs if isinstance(theirs, dict) else {}
    try:
        # Those of jobs of their own, too.
        content = merge_results(result_files(run, 0))
    except EvalError:
        content = {"tasks": {}}
    scored = content["tasks"]
    # The name of a suite's task says all of its settings.
    same = [name for name in wanted if name in scored and (name not in tasks or theirs.get(name) == tasks[name])]
    lines = []
    if missing := [name for name in wanted if name not in same]:
        lines.append(f"{run} has no scores of step 0 with the same settings for {', '.join(missing)}: no difference to the "
                     "start can be reported")  # fmt: skip
    if same:
        target.parent.mkdir(parents=True, exist_ok=True)
        content.pop("damaged", None)
        write_json(target, {**content, "tasks": {name: scored[name] for name in same}})
        lines.append(f"scores of step 0 of {', '.join(same)} are those of {run}")
    return lines


def _real(path: Path) -> Path:
    """Without links, as far as they lead anywhere; Path.resolve raises where they lead in a circle."""
    return Path(os.path.realpath(path))


def _has_hidden(root: Path) -> bool:
    """Whether a kill has taken its name from one of the run's checkpoints, which the start gives back (storage.tidy_up)."""
    return root.is_dir() and any(match[3] == "replaced" for _, match in storage.leftovers(root))


def _older(found: Checkpoint) -> Path | None:
    """The newest of those beside a checkpoint that are older and whole, as far as manifests and sizes go."""
    beside = (each for each in candidates(found.path.parent) if isinstance(each, Checkpoint))
    try:
        return next((each.path for each in beside if each.step < found.step), None)
    except OSError:  # their folder may be entered, and not be listed
        return None


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("branched_from", "origins") if record.get(name)}


def _entry(found: Checkpoint) -> dict[str, Any]:
    return {"path": str(found.path), "step": found.step, "sha256": found.manifest["sha256"]}
