"""The weights of a run at a checkpoint, from its files and those of the base, without memory for more than is asked for.

The model of the run is built without memory for its parameters. There is no process group, no GPU and no DeepSpeed here, and the
world size of the training does not matter.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel

from monteclora import attach_adapter
from training.checkpoint.manifest import Checkpoint
from training.checkpoint.slices import Shards, check_parameters
from training.config import Config, ModelConfig, looks_like_path
from training.errors import CheckpointError
from training.model.build import DTYPES, folder_fingerprint, random_model
from training.model.loading import base_folder, empty_model, fill_model, open_weights


class Weights:
    """The parameters of the run's model, read from checkpoint and base when they are asked for."""

    def __init__(self, checkpoint: Checkpoint, config: Config, base: Path | None, *, is_as_in_run: bool) -> None:
        """Build the model, and compare what the files hold with it.

        Args:
            checkpoint: holds what was trained.
            config: of its run, with the base where it is now.
            base: its folder; None of a run that drew its weights.
            is_as_in_run: read parameters in the types that they have in the run, instead of fp32.

        Raises:
            CheckpointError: the files are not of this model.
        """
        self._is_as_in_run = is_as_in_run
        self._shards = Shards(checkpoint)
        self._fills: dict[Tensor, Callable[[int, Tensor], None]] = {}
        dtype = DTYPES[config.train.precision]
        if base is None:
            with torch.device("meta"):
                self.model: PreTrainedModel = random_model(config.model.architecture, dtype=dtype, seed=config.run.seed)
        else:
            self.model = self._model_of_base(base, config.model, dtype)
        adapter_config = config.adapter.build()
        # Beside a sharded base an adapter has its precision, else one of its own.
        is_sharded = checkpoint.manifest.get("placement") != "replicated"
        self.adapter = (
            attach_adapter(self.model, adapter_config, dtype=dtype if is_sharded else None) if adapter_config else None
        )
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}
        trained = {name: tuple(p.shape) for p, name in self._names.items() if p.requires_grad}
        states = {name: tuple(found) for name, found in checkpoint.manifest["states"].items()}
        check_parameters(checkpoint, states, trained)

    def _model_of_base(self, folder: Path, config: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
        def remember(shape: tuple[int, ...], fill: Callable[[int, Tensor], None]) -> nn.Parameter:
            parameter = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
            self._fills[parameter] = fill
            return parameter

        try:
            model = empty_model(folder, config, dtype=dtype, attention="eager")
            fill_model(model, open_weights(folder), remember)
        except (OSError, ValueError, StrictDataclassError) as error:
            raise CheckpointError(f"the base {folder}: {error}") from error
        return model

    def read(self, parameter: Tensor) -> Tensor:
        """One parameter of the model, whole: as the run has it, or in fp32 when another type was asked for."""
        if parameter.requires_grad:
            whole = self._shards.read(self._names[parameter], parameter.numel()).view(parameter.shape)
        else:
            whole = self.before_training(parameter)
        return whole.to(parameter.dtype if self._is_as_in_run else torch.float32)

    def before_training(self, parameter: Tensor) -> Tensor:
        """One of the base's parameters, in the run's precision; also one that has been trained since."""
        whole = torch.empty(parameter.shape, dtype=parameter.dtype)
        self._fills[parameter](0, whole.view(-1))
        return whole


def with_base(config: Config, base: Path | None) -> tuple[Config, Path | None]:
    """The configuration with the base where it is now, and its folder; None of a run that drew its weights.

    Args:
        config: of a run, as recorded.
        base: where the user says that it is; None: where it was.

    Raises:
        CheckpointError: it is not there, or there is none.
    """
    model = config.model
    if base is not None:
        if model.base is None:
            raise CheckpointError("--base: the run had none, it drew its weights (model.base is not set); leave it out")
        model = dataclasses.replace(model, base=str(base.resolve()), revision=None)
    return dataclasses.replace(config, model=model), None if model.base is None else _base_folder(model)


def _base_folder(model: ModelConfig) -> Path:
    base = str(model.base)
    if looks_like_path(base) and not Path(base).is_dir():
        raise CheckpointError(f"the base {base} is not there; say with --base where it is now")
    try:
        return base_folder(model)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the base {base}: {error}; say with --base where another copy is") from error


def check_base(base: Path, checkpoint: Checkpoint) -> None:
    """Read the base's weights, and refuse others than the run was trained on.

    Raises:
        CheckpointError: they are others.
    """
    print(f"reading {base} to see that it is the base of the run", file=sys.stderr, flush=True)
    if folder_fingerprint(base) != checkpoint.manifest["fingerprints"].get("base"):
        raise CheckpointError(
            f"{base}: holds other weights than the run was trained on; say with --base where those are"
        )
