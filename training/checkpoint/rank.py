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
from evals.weights.rank import NotFiniteError, Settings
from evals.weights.spectrum import LowRank
from monteclora.errors import AdapterError
from monteclora.lora import LoRALinear
from monteclora.merge import merged_weight
from training.checkpoint.commands import Place, damages_of, find
from training.checkpoint.manifest import MANIFEST, Checkpoint, open_checkpoint
from training.checkpoint.recorded import recorded_config
from training.checkpoint.weights import Weights, check_base, with_base
from training.config import Config
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


class AtCheckpoint:
    """`evals.weights.stored.Weights` of a run at a checkpoint, in fp32; a MonteCLoRA adapter's update is its mean."""

    epsilon = torch.finfo(torch.float32).eps

    def __init__(self, checkpoint: Checkpoint, config: Config, base: Path | None) -> None:
        """Build the model without memory for its parameters.

        Args:
            checkpoint: holds what was trained.
            config: of its run, with the base where it is now.
            base: its folder; None of a run that drew its weights.
        """
        self.checkpoint, self.config, self.folder = checkpoint, config, base
        self.label, self.base = str(checkpoint.path), str(base or checkpoint.path.parent)
        self.weights = weights = Weights(checkpoint, config, base, is_as_in_run=False)
        adapter = weights.adapter
        own = set() if adapter is None else {p for n, p in adapter.named_parameters().items() if n not in adapter.saved}
        self._layers: dict[Tensor, LoRALinear] = {}
        if adapter is not None:
            self._layers = {layer.weight: layer for layer in adapter.layers.values()}
        self.parameters = {plain_name(n): p for n, p in weights.model.named_parameters() if p not in own}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(p.shape) for name, p in self.parameters.items()}
        all_names = weights.model.named_parameters(remove_duplicate=False)
        self.num_tied = sum(p not in own for _, p in all_names) - len(self.parameters)

    @property
    def state(self) -> str:
        """See `Weights`: the manifest has the hashes of all other files."""
        return hashlib.sha256((self.checkpoint.path / MANIFEST).read_bytes()).hexdigest()[:16]

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        parameter = self.parameters[name]
        value = self.weights.read(parameter)
        if layer := self._layers.get(parameter):
            return merged_weight(value, self.weights.read(layer.lora_A), self.weights.read(layer.lora_B), layer.scaling)
        return value

    def update(self, name: str) -> LowRank | None:
        """See `Weights`."""
        parameter = self.parameters[name]
        if layer := self._layers.get(parameter):
            return LowRank(
                B=layer.scaling * self.weights.read(layer.lora_B).double(), A=self.weights.read(layer.lora_A)
            )
        return None if parameter.requires_grad else LowRank.zeros(*self.shapes[name])


class BeforeTraining:
    """`evals.weights.stored.Weights` of a run's base, in the run's precision."""

    epsilon = torch.finfo(torch.float32).eps

    def __init__(self, after: AtCheckpoint) -> None:
        """Of the run that has this checkpoint."""
        self._after = after
        self.label = self.base = after.base
        self.state = f"{after.checkpoint.manifest['fingerprints'].get('base')} {after.config.train.precision}"
        self.shapes, self.num_tied = after.shapes, after.num_tied

    def read(self, name: str) -> Tensor:
        """See `Weights`."""
        return self._after.weights.before_training(self._after.parameters[name]).float()

    def update(self, name: str) -> LowRank | None:
        """See `Weights`: the base itself has none."""
        return LowRank.zeros(*self.shapes[name])


def rank_checkpoints(request: Request) -> int:
    """Measure as asked, one checkpoint after the other, the oldest first; return the exit code."""
    try:
        settings = Settings(share=request.share, modules=request.modules, only_change=request.only_change)
        device = usable_device(request.device)
        place = find(request.checkpoint)
        against = None if request.against is None else _at_step(place, request.against)
        wanted = place.folders[::-1] if request.step is None else [_at_step(place, request.step)]
        wanted = [folder for folder in wanted if folder != against]
        if not wanted:
            raise CheckpointError(f"{place.path}: there is no checkpoint to compare")
        before = None
        if against is not None:
            if is_damaged(against):
                raise CheckpointError(f"--against {request.against}: is damaged; name another step")
            before = _opened(open_checkpoint(against), request)
        return _rank_all(wanted, before, _run_of(place), request, settings, device)
    except (CheckpointError, ModelError, AdapterError, EvalError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'rank'}: {error.strerror or error}", file=sys.stderr)
    return NOT_DONE


def _rank_all(
    folders: Sequence[Path], before: AtCheckpoint | None, run: Path, request: Request, settings: Settings, device: str
) -> int:
    """Measure; checkpoints that are damaged or have diverged are told, and do not keep the others from being measured."""
    has_right_base, code, document = False, 0, None
    for folder in folders:
        # Whatever is wrong with the request is told before everything is read.
        try:
            checkpoint = open_checkpoint(folder)
        except CheckpointError as error:
            print(f"damaged: {error}", file=sys.stderr)
            code = max(code, DAMAGED)
            continue
        after = _opened(checkpoint, request)
        if is_damaged(folder):
            code = max(code, DAMAGED)
            continue
        if after.folder is not None and not has_right_base:
            check_base(after.folder, after.checkpoint)
            has_right_base = True
        out = result_path(run, after.checkpoint.step)
        try:
            document = measure(
                before or BeforeTraining(after), after, settings,
                device=device, out=out, step=after.checkpoint.step, earlier=document,
            )  # fmt: skip
        except NotFiniteError as error:
            print(f"error: {error}", file=sys.stderr)
            code = NOT_DONE
            continue
        _print(document, out, in_full=len(folders) == 1)
    return code


def is_damaged(folder: Path) -> bool:
    """Whether a checkpoint is not what was written; says what is wrong with it."""
    with ProgressReporter(sys.stderr, unit="bytes") as reporter:
        damages = damages_of(folder, reporter)
    for damage in damages:
        print(f"damaged: {damage}", file=sys.stderr)
    return bool(damages)


def _opened(checkpoint: Checkpoint, request: Request) -> AtCheckpoint:
    config, base = with_base(recorded_config(checkpoint), request.base)
    if base is None and request.against is None:
        raise CheckpointError(
            f"{checkpoint.path}: its run began with weights that it drew, not with a base; say with --against STEP with which of its "
            "checkpoints to compare"
        )
    return AtCheckpoint(checkpoint, config, base)


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
