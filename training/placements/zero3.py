"""ZeRO-3 by DeepSpeed: every rank holds its share of weights, gradients and optimizer state.

With hpZ each node also keeps a whole copy of the weights, which backward gathers inside the node; with offload masters and
optimizer state are in host memory.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn

from training.config import Config
from training.optim import Muon, Slice, make_optimizer, materialised, state_names
from training.placements.extensions import prepare_extension
from training.world import World


def init_deepspeed(world: World, say: Callable[[str], None]) -> None:
    """Have DeepSpeed adopt the process group; `say` gets a line when it compiles its extension, once per environment.

    Raises:
        ConfigError: on all ranks, when one can't compile it.
    """
    prepare_extension(world, say)
    # It prints that it has built the extension, on every rank and every time.
    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(verbose=False)
    dist.barrier()
    # Every rank has mapped it by now. Left alone, 69 MB per rank would stay in memory after the run, for every port used.
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{world.master_addr}_{world.master_port}_{world.rank}"
    Path("/dev/shm", name).unlink(missing_ok=True)


def complete_ds_config(ds_config: dict[str, Any], config: Config, world: World) -> dict[str, Any]:
    """The DeepSpeed configuration with what the recipe owns filled in."""
    train = config.train
    rows = train.global_batch_rows * train.sequence_parallel
    complete = {
        **ds_config,
        "train_batch_size": rows,
        "train_micro_batch_size_per_gpu": train.micro_batch_rows,
        "gradient_accumulation_steps": rows // (world.size * train.micro_batch_rows),
        "gradient_clipping": train.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {**ds_config.get("zero_optimization", {}), **_zero_options(train.placement, world)},
    }
    complete.setdefault("steps_per_print", 10**9)
    if train.precision == "bf16":
        complete["bf16"] = {"enabled": True}
        complete["data_types"] = {"grad_accum_dtype": "fp32"}
    return complete


def _zero_options(placement: str, world: World) -> dict[str, Any]:
    if placement == "zero3_hpz":
        return {"zero_hpz_partition_size": world.local_size}
    if placement == "zero3_offload":
        return {"offload_optimizer": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    return {}


class Zero3:
    """A `Placement` on DeepSpeed's engine."""

    def __init__(
        self, module: nn.Module, groups: list[dict[str, Any]], config: Config, ds_config: dict[str, Any], world: World
    ) -> None:
        """Partition `module`, with what is attached to it, and make its optimizer; `ds_config` is complete_ds_config's."""
        self._config, self._world = config, world
        # Typed as Any: ZeRO-3 adds ds_shape, ds_tensor and more to parameters.
        self._names: dict[str, Any] = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._groups = [group["name"] for group in groups]
        own_optimizer = make_optimizer(groups, config.optim)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=own_optimizer, config=ds_config, dist_init_required=False
        )
        self.model: nn.Module = self._engine
        self.module: nn.Module = self._engine.module
        self.device: torch.device = self._engine.device
        self.optimizer = self._engine.optimizer
        if isinstance(own_optimizer, Muon):
            self._lay_out(own_optimizer, {group["name"] for group in groups if group["uses_muon"]})

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradients of a micro-batch; see `Placement`."""
        self._engine.backward(loss, scale_wrt_gas=False)
        if not is_last:
            self._engine.step()

    def update(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip and take a step; see `Placement`. DeepSpeed itself looks at the norm on the host, once per step."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()  # None before the first step that was not skipped
        is_applied = bool(self._engine.was_step_applied())
        return torch.tensor(float(norm) if norm is not None and is_applied else float("nan")), torch.tensor(is_applied)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shapes; see `Placement`."""
        return {name: tuple(parameter.ds_shape) for name, parameter in self._names.items()}

    def state_names(self) -> dict[str, tuple[str, ...]]:
        """Names of optimizer states; see `Placement`."""
        return {name: state_names(self._config.optim, name, shape) for name, shape in self.shapes().items()}

    def local_views(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's slices; see `Placement`."""
        self._materialise_optimizer_state()
        for name, keys in self.state_names().items():
            parameter = self._names[name]
            yield name, safe_get_local_fp32_param(parameter)
            for key in keys:
                yield f"{name}/{key}", safe_get_local_optimizer_state(parameter, key)

    def load_local_state(self, state: Iterable[tuple[str, torch.Tensor]], optimizer_steps: dict[str, int]) -> None:
        """Set such slices; see `Placement`."""
        self._materialise_optimizer_state()
        for group, steps in optimizer_steps.items():
            for state_of_flat in self._states(group):
                state_of_flat["step"] = torch.full_like(state_of_flat["step"], steps)
        for name, value in state:
            of, _, key = name.partition("/")
            parameter = self._names[of]
            if key:
                safe_set_local_optimizer_state(parameter, value, key)
                continue
            safe_set_local_fp32_param(parameter, value)
            # The next forward reads the low-precision copy, which setting the master leaves alone.
            if parameter.ds_status == ZeroParamStatus.AVAILABLE:
                parameter.partition()
            parameter.ds_tensor.data.copy_(value.to(parameter.ds_tensor.dtype))
        # With hpZ the node's copy would otherwise be what the next forward reads.
        self.optimizer.invalidate_secondary_tensor()

    def optimizer_steps(self) -> dict[str, int]:
        """Updates of every group; see `Placement`."""
        return {group: max(int(state["step"]) for state in self._states(group)) for group in self._groups}

    def reset_optimizer_steps(self, group: str) -> None:
        """Forget a group's number of updates; see `Placement`."""
        for state in self._states(group):
            state["step"].zero_()

    def full_parameters(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Whole parameters on rank 0; see `Placement`."""
        for name, parameter in self.module.named_parameters():
            if names is not None and name not in names:
                continue
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().to("cpu", copy=True) if self._world.rank == 0 else None
            yield name, whole

    def close(self) -> None:
        """Let DeepSpeed go."""
        self._engine.destroy()
        # It is kept per process, and DeepSpeed makes no second one.
        deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None

    def _states(self, group: str) -> list[dict[str, Any]]:
        """The optimizer's state of this rank's flat tensors of a group, made where there is none; none of no such group."""
        names = [each["name"] for each in self.optimizer.param_groups]
        return [
            materialised(self.optimizer.optimizer, flat)
            for index, flat in enumerate(self.optimizer.fp32_partitioned_groups_flat)
            if names[self.optimizer.sub_group_to_group_id[index]] == group
        ]

    def _lay_out(self, muon: Muon, groups: set[str]) -> None:
        """Tell Muon which parts of which matrices this rank's flat tensors hold."""
        names = {id(parameter): name for name, parameter in self._names.items()}
        for index, flat in enumerate(self.optimizer.fp32_partitioned_groups_flat):
            if self.optimizer.param_groups[self.optimizer.sub_group_to_group_id[index]]["name"] not in groups:
                continue
            slices, offset = [], 0
            for parameter in self.optimizer.fp16_groups[index]:
                rows, columns = parameter.ds_shape
                size = parameter.partition_numel()
                start = self._world.rank * size
                numel = max(0, min(size, parameter.ds_numel - start))
                name = names[id(parameter)]
                slices.append(Slice(name=name, shape=(rows, columns), start=start, numel=numel, offset=offset))
                offset += size
            muon.lay_out(flat, slices, device=self.device)

    def _materialise_optimizer_state(self) -> None:
        for group in self._groups:
            self._states(group)
