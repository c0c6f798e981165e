"""The runs of a sweep with what they learned and forgot, per document, at every budget; read as collect reads them."""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.arithmetic.forgetting import UNITS, Changes, changes, contrast
from evals.claims.estimates import Floats, scores
from evals.claims.roles import Arm, arms_of, in_order, setting
from evals.collect.document import collect
from evals.collect.points import Evaluation, read_evaluation
from evals.collect.summaries import read_rank
from evals.collect.walk import RunFolder, walk
from evals.errors import EvalError
from evals.report.methods import METRICS, averaged
from evals.results import load_run

LEARNED, FORGOTTEN, LEARNED_ACCURACY = "learned", "forgotten", "learned_accuracy"
LAST_PART = 0.1
"""Of the logged losses, whose mean is the training loss at the end."""


class Scored(NamedTuple):
    """A task at a step: its examples' changes since step 0, and the rest of its entry."""

    change: Changes
    entry: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A run, and what it learned.

    Attributes:
        id: its folder, relative to its root.
        arm: the method it is of.
        lr: peak learning rate.
        seed: of data order and noise.
        status: done, running, failed ...
        is_diverged: its loss or its answers are no numbers, or it gave up for that reason, as collect has it.
        at: tokens trained on -> task -> how it was scored.
        ranks: tokens -> rank of the weight change, by layer and module.
        train_loss: mean of the last logged losses, nats per target token; None without any.
        record: its run.json.
    """

    id: str
    arm: Arm
    lr: float
    seed: int
    status: str
    is_diverged: bool
    at: Mapping[int, Mapping[str, Scored]]
    ranks: Mapping[int, Mapping[str, Any]]
    train_loss: float | None
    record: Mapping[str, Any]

    @property
    def budget(self) -> int:
        """Tokens at its last usable evaluation; 0 without one."""
        return max(self.at, default=0)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a figure is over: held-out tasks of one metric, their documents and weights.

    Attributes:
        tasks: names; the figure is the mean over them.
        unit: of the figure.
        sign: 1, or -1 where an improvement counts as negative.
        examples: of each task, as they were scored in one of the runs.
    """

    tasks: tuple[str, ...]
    unit: str
    sign: int
    examples: tuple[Changes, ...]

    @functools.cached_property
    def documents(self) -> tuple[tuple[str, ...], ...]:
        """Of each task, the independent units."""
        return tuple(tuple(dict.fromkeys(change.groups)) for change in self.examples)

    @functools.cached_property
    def weights(self) -> tuple[Floats, ...]:
        """Of each task, [documents]."""
        return tuple(_by_document(c, d, c.weights) for c, d in zip(self.examples, self.documents, strict=True))

    @functools.cached_property
    def halves(self) -> tuple[NDArray[np.bool_], ...]:
        """Of each task, [documents], which of them are in the second half."""
        return tuple(map(_halves, self.documents))

    @property
    def units(self) -> int:
        """Documents of the task that has fewest."""
        return min(map(len, self.documents))


@dataclass(kw_only=True)
class Panel:
    """All runs on the same data from the same base.

    Attributes:
        name: of the data sources.
        kind: continued pretraining or instruction finetuning.
        base: name of the base.
        runs: by arm, learning rate and seed.
        measures: learned, forgotten and, where measured, learned_accuracy.
    """

    name: str
    kind: str
    base: str
    runs: list[StudyRun]
    measures: dict[str, Measure]
    _replicates: dict[tuple[str, str, int], Floats | None] = field(default_factory=dict)

    @property
    def arms(self) -> list[Arm]:
        """The methods, as they are shown."""
        return in_order([run.arm for run in self.runs])

    def of(self, *roles: str) -> list[Arm]:
        """The arms of some roles."""
        return [arm for arm in self.arms if arm.role in roles]

    def cells(self, arm: Arm) -> dict[tuple[float, int], StudyRun]:
        """(learning rate, seed) -> run."""
        return {(run.lr, run.seed): run for run in self.runs if run.arm == arm}

    def budgets(self, arm: Arm) -> list[int]:
        """Budgets at which a run of the arm was scored, from the smallest to the largest that its finished runs share.

        Where those share none, to the largest that most of them have; without a finished run, all scored ones count.
        """
        runs = [run for run in self.runs if run.arm == arm and run.at]
        finished = [run for run in runs if run.status == "done" and not run.is_diverged] or runs
        having = Counter(tokens for run in finished for tokens in run.at)
        end = max(having, key=lambda tokens: (having[tokens], tokens), default=0)
        return sorted({tokens for run in runs for tokens in run.at if tokens <= end})

    def values(self, run: StudyRun, effect: str, tokens: int) -> tuple[Floats, ...] | None:
        """Of each task of a measure, each document's change, [documents]; None where one of the tasks was not scored."""
        over, scored = self.measures[effect], run.at.get(tokens, {})
        if any(name not in scored for name in over.tasks):
            return None
        named = zip((scored[name].change for name in over.tasks), over.documents, strict=True)
        return tuple(over.sign * _by_document(change, documents, change.deltas) for change, documents in named)

    def replicates(self, run: StudyRun, effect: str, tokens: int) -> Floats | None:
        """[1 + draws]: the score over all documents, and over each draw of them; None where it was not measured."""
        key = (run.id, effect, tokens)
        if key not in self._replicates:
            found = self.values(run, effect, tokens)
            self._replicates[key] = None if found is None else scores(found, self.measures[effect].weights)
        return self._replicates[key]

    def score(self, run: StudyRun, effect: str, tokens: int) -> float | None:
        """The score over all documents; None where it was not measured."""
        found = self.replicates(run, effect, tokens)
        return None if found is None else float(found[0])


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that was read.

    Attributes:
        panels: one for each base and data.
        left_out: run id -> why it counts nowhere.
        statuses: of all runs found, the cells of sweeps that have not begun among them.
        sweeps: names of the sweeps.
    """

    panels: tuple[Panel, ...]
    left_out: Mapping[str, str]
    statuses: Mapping[str, int]
    sweeps: tuple[str, ...]


def read_study(roots: Sequence[Path]) -> Study:
    """Read every run below some folders.

    Raises:
        EvalError: a root does not exist, or nothing there can be compared.
    """
    document = collect(roots, stale=math.inf)
    folders = {folder.id: folder for folder in walk(roots).runs}
    names = ", ".join(map(str, roots))
    if not document["runs"]:
        raise EvalError(f"{names}: no run was found, no folder there has a run.json; give the folder of a sweep's runs")
    left_out: dict[str, str] = {}
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in document["runs"]:
        if reason := _unusable(run):
            left_out[run["id"]] = reason
        else:
            groups.setdefault((tuple(run["data"]), run["base_fingerprint"] or run["base"]), []).append(run)
    panels = []
    for key in sorted(groups, key=str):
        panel = _panel(groups[key], folders, left_out)
        panels += [panel] if panel is not None else []
    if not panels:
        reasons = "; ".join(f"{n} {why}" for why, n in Counter(left_out.values()).most_common(4))
        raise EvalError(
            f"{names}: none of {len(document['runs'])} runs can be compared ({reasons}); score runs before training "
            "(eval.at_start) and after it, on tasks of the domains new and old"
        )
    return Study(
        panels=tuple(_distinct(panels)),
        left_out=dict(sorted(left_out.items())),
        statuses=Counter(run["status"] for run in document["runs"]),
        sweeps=tuple(sorted({sweep["name"] for sweep in document["sweeps"]})),
    )


def _unusable(run: Mapping[str, Any]) -> str | None:
    """Why a run of collect's document can't count, as far as its record tells."""
    if run["status"] in ("not started", "unreadable"):
        return {"not started": "not started", "unreadable": "without a readable run.json"}[run["status"]]
    if run["is_from_scratch"]:
        return "trained from scratch: nothing to forget"
    if run["is_continuation"]:
        return "a continuation of another run"
    missing = [name for name in ("lr", "seed", "data", "batch_rows", "seq_len") if run[name] is None]
    return f"without {', '.join(missing)} in run.json" if missing else None


def _panel(
    entries: Sequence[Mapping[str, Any]], folders: Mapping[str, RunFolder], left_out: dict[str, str]
) -> Panel | None:
    """The runs of one base and data; None where none of them can be used."""
    records = {run["id"]: load_run(folders[run["id"]].path).record for run in entries}
    arms = arms_of({run: record.get("config") or {} for run, record in records.items()})
    runs = []
    for entry in entries:
        if entry["id"] not in arms:
            left_out[entry["id"]] = "of an adapter that is not known here"
            continue
        run = _run(entry, folders[entry["id"]], records[entry["id"]], arms[entry["id"]])
        if run.at or run.is_diverged:
            runs.append(run)
        else:
            left_out[run.id] = f"{run.status}, and not scored both before and after training"
    runs = list(_without_twins(runs, left_out))
    measures = {effect: found for effect in (LEARNED, FORGOTTEN, LEARNED_ACCURACY) if (found := _measure(effect, runs))}
    if LEARNED not in measures or FORGOTTEN not in measures:
        left_out.update({run.id: "without held-out tasks of both domains, new and old" for run in runs})
        return None
    runs = _comparable(runs, measures, left_out)
    config = records[runs[0].id]["config"]
    sources = setting(config, "data.sources") or {}
    is_text = all(source.get("kind", "text") == "text" for source in sources.values())
    kind = "continued pretraining" if is_text else "instruction finetuning"
    runs.sort(key=lambda run: (run.arm, run.lr, run.seed))
    name = " + ".join(sorted(sources))
    return Panel(name=name, kind=kind, base=_base(entries[0]), runs=runs, measures=measures)


def _run(entry: Mapping[str, Any], folder: RunFolder, record: Mapping[str, Any], arm: Arm) -> StudyRun:
    per_step = entry["batch_rows"] * entry["seq_len"]
    losses = [loss for _, loss in entry["loss"]]
    last = losses[-max(1, round(LAST_PART * len(losses))) :]
    return StudyRun(
        id=entry["id"],
        arm=arm,
        lr=entry["lr"],
        seed=entry["seed"],
        status=entry["status"],
        is_diverged=entry["is_diverged"],
        at={step * per_step: found for step, found in _scored(folder)},
        ranks={step * per_step: found for step, found in _ranks(folder)},
        train_loss=float(np.mean(last)) if last else None,
        record=record,
    )


def _scored(folder: RunFolder) -> Iterator[tuple[int, dict[str, Scored]]]:
    """Step -> the tasks that were scored both then and before training."""
    if 0 not in folder.evals:
        return
    start = _evaluation(folder, 0)
    for step in sorted(set(folder.evals) - {0}):
        found = {}
        for name, after in _evaluation(folder, step).tasks.items():
            try:
                if name in start.tasks:
                    about = {key: value for key, value in after.items() if key != "examples"}
                    found[name] = Scored(changes(start.tasks[name], after), about)
            except (EvalError, KeyError, TypeError, ValueError):
                continue  # not a number, or of other examples: collect's page says which
        if found:
            yield step, found


def _evaluation(folder: RunFolder, step: int) -> Evaluation:
    return read_evaluation([folder.path / "evals" / name for name in folder.evals[step]])


def _ranks(folder: RunFolder) -> Iterator[tuple[int, dict[str, Any]]]:
    for step, files in sorted(folder.ranks.items()):
        (name,) = files
        found = read_rank(folder.path / "weights" / name)
        if found["problem"] is None and _is_comparable(found):
            yield step, found


def _is_comparable(document: Mapping[str, Any]) -> bool:
    """Whether the share is known, and of every rank how large it could be."""
    rows = zip(document["rank"], document["full_rank"] or [], strict=False)
    pairs = [pair for row, full in rows for pair in zip(row, full, strict=True) if pair[0] is not None]
    return bool(pairs) and all(full for _, full in pairs) and isinstance(document["share"], float)


def _without_twins(runs: Sequence[StudyRun], left_out: dict[str, str]) -> Iterator[StudyRun]:
    """Of runs with the same settings and seed one of the length that most runs of the arm have, the one that came furthest."""
    groups: dict[tuple[Arm, float, int], list[StudyRun]] = {}
    for run in runs:
        groups.setdefault((run.arm, run.lr, run.seed), []).append(run)
    for (arm, _, _), twins in groups.items():
        lengths = Counter(_steps(run) for run in runs if run.arm == arm)
        usual = max(lengths, key=lambda steps: (lengths[steps], steps))
        best, *others = sorted(twins, key=lambda run: (_steps(run) != usual, -run.budget, run.id))
        for run in others:
            same, steps = f"of the same settings as {best.id}", _steps(run)
            is_other = steps != _steps(best)
            left_out[run.id] = f"{same}, but {steps} steps long and not {_steps(best)}" if is_other else same
        yield best


def _steps(run: StudyRun) -> int:
    """The length that a run was to have."""
    steps = run.record.get("steps")
    return steps if isinstance(steps, int) else 0


def _measure(effect: str, runs: Sequence[StudyRun]) -> Measure | None:
    """What a figure is over: the tasks that most runs have at their end, in one metric; None without any."""
    domain, sign = ("old", -1) if effect == FORGOTTEN else ("new", 1)
    ends = [run.at[run.budget] for run in runs if run.at]
    for metric in METRICS if effect != LEARNED_ACCURACY else ("accuracy",):
        chosen = Counter(names for end in ends if (names := _names(end, domain, metric)))
        if chosen:
            names = max(chosen, key=lambda each: (chosen[each], each))
            having = [end for end in ends if set(names) <= set(end)]
            asked = [tuple((end[n].change.ids, end[n].change.fingerprint) for n in names) for end in having]
            first = having[asked.index(Counter(asked).most_common(1)[0][0])]
            examples = tuple(first[name].change for name in names)
            return Measure(tasks=names, unit=UNITS.get(metric, metric), sign=sign, examples=examples)
    return None


def _names(end: Mapping[str, Scored], domain: str, metric: str) -> tuple[str, ...]:
    entries = {name: scored.entry for name, scored in end.items()}
    return tuple(sorted(averaged(entries, entries, domain, metric)))


def _by_document(change: Changes, documents: Sequence[str], values: Floats) -> Floats:
    """The sums over documents of a value of every example, [documents]."""
    place = {document: index for index, document in enumerate(documents)}
    index = [place[group] for group in change.groups]
    return np.bincount(index, weights=values, minlength=len(documents)).astype(np.float64)


def _halves(documents: Sequence[str]) -> NDArray[np.bool_]:
    """Which documents are in the second half, by a hash of their names, so that it is the same in every study."""
    hashes = [hashlib.blake2b(document.encode()).digest() for document in documents]
    is_second = np.zeros(len(documents), dtype=bool)
    is_second[sorted(range(len(documents)), key=lambda index: hashes[index])[1::2]] = True
    return is_second


def _comparable(runs: Sequence[StudyRun], measures: Mapping[str, Measure], left_out: dict[str, str]) -> list[StudyRun]:
    """The runs without tasks that were scored on other documents, or cut differently, than in most of them."""
    first = {n: change for each in measures.values() for n, change in zip(each.tasks, each.examples, strict=True)}
    kept = []
    for run in runs:
        at = {tokens: same for tokens, found in run.at.items() if (same := _alike(found, first))}
        if run.at and not at:
            left_out[run.id] = "scored on other held-out documents than most runs"
        else:
            kept.append(replace(run, at=at))
    return kept


def _alike(found: Mapping[str, Scored], first: Mapping[str, Changes]) -> dict[str, Scored]:
    kept = {}
    for name, scored in found.items():
        try:
            if name in first:
                contrast(scored.change, first[name])
                kept[name] = scored
        except EvalError:
            continue
    return kept


def _base(run: Mapping[str, Any]) -> str:
    """A base's name without the folders of the machine it was on."""
    parts = [part for part in str(run["base"]).split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "export" else parts[-1]


def _distinct(panels: Sequence[Panel]) -> list[Panel]:
    """Panels whose names tell them apart: by base, then by number."""
    for describe in (
        lambda panel, _: f"{panel.name} from {panel.base}",
        lambda panel, index: f"{panel.name} ({index + 1})",
    ):
        names = Counter(panel.name for panel in panels)
        for index, panel in enumerate(panels):
            if names[panel.name] > 1:
                panel.name = describe(panel, index)
    return list(panels)
