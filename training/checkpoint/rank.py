"""`rank`: the rank of the weight change at checkpoints of a run, from the files alone.

What the run trained is compared in fp32, as the optimizer has it, with the base in the run's precision, which is where the training
began: rounding for an export is not taken for a change. An adapter's update is known as its factors, and exact.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from data_pipeline.commands.progress import ProgressReporter
from evals.errors import EvalError
from evals.weights.command import measure, result_path, show, usable_device
from evals.weights.names import plain_name
from evals.weights.rank import Settings
from evals.weights.spectrum import LowRank
from monteclora.errors import AdapterError
from monteclora.lora import LoRALinear
from monteclora.merge import merged_weight
from training.checkpoint.commands import Place, damages_of, find
from training.checkpoint.manifest import MANIFEST, open_checkpoint
from training.checkpoint.recorded import recorded_config
from training.checkpoint.weights import Weights, check_base, with_base
from training.errors import CheckpointError, ModelError

DAMAGED, NOT_DONE = 1, 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; see --help."""

    checkpoint: Path
    step: int | None = None
    against: int | None = None
    base: Path | None = None
    share: float = 0.9
    modules: tuple[str, ...] = ()
    only_change: bool = False
    device: str = "auto"


class _Stored:
    """What both states of a run's model are to `evals.weights`: its parameters but for the adapter's own."""

    epsilon = torch.finfo(torch.float32).eps

    def __init__(self, weights: Weights, *, label: str, base: str, state: str, start: str = "") -> None:
        self.weights, self.label, self.base, self.state, self.start = weights, label, base, state, start
        adapter = weights.adapter
        own = set() if adapter is None else {p for n, p in adapter.named_parameters().items() if n not in adapter.saved}
        self._layers: dict[Tensor, LoRALinear] = (
            {layer.weight: layer for layer in adapter.layers.values()} if adapter else {}
        )
        self._parameters = {plain_name(n): p for n, p in weights.model.named_parameters() if p not in own}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(p.shape) for name, p in self._parameters.items()}
        with_all_names = weights.model.named_parameters(remove_duplicate=False)
        self.num_tied = sum(p not in own for _, p in with_all_names) - len(self._parameters)


class BeforeTraining(_Stored):
    """The base of a run, in its precision."""

    def read(self, name: str) -> Tensor:
        """See `evals.weights.stored.Weights`."""
        return self.weights.before_training(self._parameters[name]).float()

    def update(self, name: str) -> LowRank | None:
        """See `evals.weights.stored.Weights`."""
        return LowRank.zeros(*self.shapes[name])


class AtCheckpoint(_Stored):
    """The model at a checkpoint, in fp32; a MonteCLoRA adapter's update is its mean."""

    def read(self, name: str) -> Tensor:
        """See `evals.weights.stored.Weights`."""
        parameter = self._parameters[name]
        value = self.weights.read(parameter)
        if layer := self._layers.get(parameter):
            return merged_weight(value, self.weights.read(layer.lora_A), self.weights.read(layer.lora_B), layer.scaling)
        return value

    def update(self, name: str) -> LowRank | None:
        """See `evals.weights.stored.Weights`."""
        parameter = self._parameters[name]
        if layer := self._layers.get(parameter):
            return LowRank(B=layer.scaling * self.weights.read(layer.lora_B), A=self.weights.read(layer.lora_A))
        return None if parameter.requires_grad else LowRank.zeros(*self.shapes[name])


def rank_checkpoints(request: Request) -> int:
    """Measure as asked, one checkpoint after the other, the oldest first; return the exit code."""
    try:
        settings = Settings(share=request.share, modules=request.modules, only_change=request.only_change)
        device = usable_device(request.device)
        place = find(request.checkpoint)
        before = None if request.against is None else _at_step(place, request.against)
        wanted = place.folders[::-1] if request.step is None else [_at_step(place, request.step)]
        wanted = [folder for folder in wanted if folder != before]
        if not wanted:
            raise CheckpointError(
                f"{place.path}: there is no checkpoint to compare{'' if before is None else ' with it'}"
            )
        undamaged, code = [], 0
        with ProgressReporter(sys.stderr, unit="bytes") as reporter:
            for folder in ([] if before is None else [before]) + wanted:
                damages = damages_of(folder, reporter)
                for damage in damages:
                    print(f"damaged: {damage}", file=sys.stderr)
                if damages and folder == before:
                    raise CheckpointError(f"--against {request.against}: is damaged; name another step")
                undamaged += [] if damages or folder == before else [folder]
                code = DAMAGED if damages else code
        if not undamaged:
            raise CheckpointError(f"{request.checkpoint}: there is no undamaged checkpoint, so nothing is measured")
        return max(code, _rank_all(undamaged, before, _run_of(place), request, settings, device))
    except (CheckpointError, ModelError, AdapterError, EvalError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'rank'}: {error.strerror or error}", file=sys.stderr)
    return NOT_DONE


def _rank_all(
    folders: Sequence[Path], against: Path | None, run: Path, request: Request, settings: Settings, device: str
) -> int:
    """Measure undamaged checkpoints; one that has diverged is told, and does not keep the others from being measured."""
    before: AtCheckpoint | None = None
    if against is not None:
        before, _ = _opened(against, request)
    is_checked, code, document = False, 0, None
    for folder in folders:
        after, base = _opened(folder, request)
        if base is None and against is None:
            raise CheckpointError(
                f"{run}: began with weights that it drew, not with a base; say with --against STEP with which of its "
                "checkpoints to compare"
            )
        if base is not None and not is_checked:
            check_base(base, open_checkpoint(folder))
            is_checked = True
        start = before or BeforeTraining(after.weights, label=str(base), base=after.base, state=after.start)
        step = open_checkpoint(folder).step
        out = result_path(run, step)
        try:
            document = measure(start, after, settings, device=device, out=out, step=step, earlier=document)
        except EvalError as error:
            print(f"error: {error}", file=sys.stderr)
            code = NOT_DONE
            continue
        _print(document, out, in_full=len(folders) == 1)
    return code


def _opened(folder: Path, request: Request) -> tuple[AtCheckpoint, Path | None]:
    """The model at a checkpoint, and the folder of its base."""
    checkpoint = open_checkpoint(folder)
    config, base = with_base(recorded_config(checkpoint), request.base)
    weights = Weights(checkpoint, config, base, is_as_in_run=False)
    # The manifest has the hashes of all other files.
    state = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16]
    start = f"{checkpoint.manifest['fingerprints'].get('base')} {config.train.precision}"
    label, known = str(folder), str(base or folder.parent)
    return AtCheckpoint(weights, label=label, base=known, state=state, start=start), base


def _at_step(place: Place, step: int) -> Path:
    by_step = {int(folder.name): folder for folder in place.folders if folder.name.isdecimal()}
    if step not in by_step:
        there = ", ".join(map(str, sorted(by_step))) or "none"
        raise CheckpointError(f"{place.path}: has no checkpoint of step {step}; those that are there: {there}")
    return by_step[step]


def _run_of(place: Place) -> Path:
    """The run's directory: of checkpoints that were taken elsewhere, the folder in which they are."""
    root = place.path if place.path not in place.folders else place.path.parent
    return root.parent if root.name == "checkpoints" else root


def _print(document: Mapping[str, Any], out: Path, *, in_full: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if in_full:
        show(document, console)
    else:
        found = sorted(row["rank"]["change"] for row in document["rows"])
        console.print(
            f"step {document['step']:,}: k from {found[0]:,} to {found[-1]:,}, median {found[len(found) // 2]:,}, over "
            f"{len(found):,} matrices"
        )
        for note in document["notes"]:
            console.print(f"  {note}")
    print(f"written: {out}", flush=True)
