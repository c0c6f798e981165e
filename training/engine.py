"""The engine: the one place that knows DeepSpeed. A step, its exact loss, and the state behind it.

The loss of a step is the sum of -log p over the step's target tokens on all ranks and micro-batches, divided once by
their number; so is the compensation of HiddenKey. DeepSpeed averages gradients over ranks, so each micro-batch is scaled
by world size / global targets and DeepSpeed's own division by the accumulation is switched off.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
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

from monteclora import Adapter, HiddenKey
from training.config import Config
from training.loss import IGNORE, summed_cross_entropy
from training.model import count_parameters
from training.randomness import micro_batch_seed
from training.schedule import lr_factor
from training.world import World

OPTIMIZER_STATES = ("exp_avg", "exp_avg_sq")
"""AdamW's state beside the fp32 master of a parameter."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows of one forward pass on one rank; all tensors are int64 of shape (rows, seq_len)."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    """Targets, already shifted; IGNORE where there is none."""
    position_ids: torch.Tensor
    """Restart at 0 at every document, which also makes attention block-diagonal."""
    first_lane: int
    """Data lane of the first row; keys the noise."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step did, the same on all ranks."""

    loss: float
    """Nats per target token over the global batch."""
    targets: int
    """Target tokens of the global batch."""
    lr: float
    grad_norm: float
    """Global gradient norm before clipping."""
    penalty: float | None
    """Variational penalty averaged over adapter layers, micro-batches and ranks; None in a step without one."""
    compensation: float | None
    """HiddenKey's weighted divergence of two passes, nats per target token; None without one."""
    is_applied: bool
    """False when a non-finite gradient made all ranks skip the update."""


def init_distributed(world: World, say: Callable[[str], None] = print) -> torch.device:
    """Join the process group and return this rank's device: a GPU when there are any, else the CPU.

    `say` gets a line when that takes long, which it does once per machine.
    """
    world.export(os.environ)
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(world.local_rank)
    minutes = float(os.environ.get("DEEPSPEED_TIMEOUT", "30"))
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=timedelta(minutes=minutes))
    patience = threading.Timer(
        15, say, ["the first start on a machine compiles DeepSpeed's CPU extension: about a minute"]
    )
    patience.daemon = True
    patience.start()
    # It prints that it has built the extension, on every rank and every time.
    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(verbose=False)
    patience.cancel()
    dist.barrier()
    # Every rank has mapped it by now. Left alone, 69 MB per rank would stay in memory after the run, for every port used.
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{world.master_addr}_{world.master_port}_{world.rank}"
    Path("/dev/shm", name).unlink(missing_ok=True)
    return torch.device("cuda", world.local_rank) if has_gpu else torch.device("cpu")


def leave_distributed() -> None:
    """Leave the process group, if this rank is in one: exiting inside it can abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def rank_0_first(world: World, *, heartbeat_seconds: float = 10.0) -> Iterator[None]:
    """The other ranks enter the block when rank 0 has left it (a collective), however long that takes.

    Rank 0 says every few seconds that it is still busy: a mere barrier would end all ranks at the process group's timeout.
    """
    if world.rank != 0:
        while _from_rank_0_flag(False, world):
            pass
        yield
        return
    done = threading.Event()

    def beat() -> None:
        while not done.wait(heartbeat_seconds):
            _from_rank_0_flag(True, world)

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        _from_rank_0_flag(False, world)


def raise_on_all_ranks(problem: Exception | None, kind: type[Exception], world: World) -> None:
    """Raise the first problem that any rank has on all ranks, as this kind (a collective); nothing where none has one.

    A rank that alone could not read a file, of a disk of its node say, would else end without a word, and the others wait.
    """
    problems: list[str | None] = [None] * world.size
    dist.all_gather_object(problems, None if problem is None else str(problem))
    for rank, message in enumerate(problems):
        if message is not None:
            raise kind(message if rank == 0 else f"rank {rank}: {message}") from problem


def _from_rank_0_flag(flag: bool, world: World) -> bool:
    """Rank 0's flag, on all ranks (a collective)."""
    # The device is said, as a thread starts with the first GPU as its own.
    device = torch.device("cuda", world.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    value = torch.tensor(int(flag), device=device)
    dist.broadcast(value, src=0)
    return bool(value.item())


def from_rank_0(compute: Callable[[], Any], world: World) -> Any:
    """What `compute` returns on rank 0, on all ranks (a collective)."""
    values = [compute() if world.rank == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]


def complete_ds_config(ds_config: dict[str, Any], config: Config, world: World) -> dict[str, Any]:
    """The DeepSpeed configuration with what the recipe owns filled in."""
    micro = config.train.micro_batch_rows
    complete = {
        **ds_config,
        "train_batch_size": config.train.global_batch_rows,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.train.global_batch_rows // (world.size * micro),
        "gradient_clipping": config.train.gradient_clipping,
        "zero_allow_untested_optimizer": True,
    }
    complete.setdefault("steps_per_print", 10**9)
    if config.train.precision == "bf16":
        complete["bf16"] = {"enabled": True}
        complete["data_types"] = {"grad_accum_dtype": "fp32"}
    return complete


class Engine:
    """A model under ZeRO-3 that can take a step, be evaluated, and hand out its state."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
        config: Config,
        ds_config: dict[str, Any],
        world: World,
        *,
        hidden_key: HiddenKey | None = None,
    ) -> None:
        """Partition `model`, with what is attached to it, and make its optimizer; `ds_config` is complete_ds_config's."""
        self.config = config
        self.world = world
        self.adapter = adapter
        self.hidden_key = hidden_key
        self.num_parameters = count_parameters(model)
        # Typed as Any: ZeRO-3 adds ds_shape, ds_tensor and more to parameters.
        self.names: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            parameter_groups(self.names, adapter, config),
            lr=config.optim.lr,
            betas=(config.optim.beta1, config.optim.beta2),
            eps=config.optim.eps,
        )
        self.deepspeed, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=ds_config, dist_init_required=False
        )
        # from_pretrained returns a model in evaluation mode: without dropout and adapter noise.
        self.deepspeed.train()
        self.device = self.deepspeed.device

    @property
    def model(self) -> nn.Module:
        """The model itself; its parameters are whole only inside a forward."""
        return self.deepspeed.module

    def step(self, batch: Sequence[MicroBatch], step: int) -> StepResult:
        """One optimizer step over this rank's micro-batches of step `step` (0-based)."""
        lr = self.config.optim.lr * lr_factor(step, self.config.train.steps, self.config.optim)
        has_penalty = self._begin_step(step, lr, num_micro_batches=len(batch))
        targets = int(self.sum_over_ranks([float(sum(int((m.labels != IGNORE).sum()) for m in batch))])[0])
        totals = torch.zeros(3, device=self.device)
        for micro in batch:
            loss, compensation = self._losses(micro, step)
            penalty = torch.zeros(()) if self.adapter is None else self.adapter.penalty()
            totals += torch.stack((loss.detach(), compensation.detach(), penalty.to(self.device)))
            scale = self.world.size / max(1, targets)
            self.deepspeed.backward((loss + compensation) * scale, scale_wrt_gas=False)
            self.deepspeed.step()
        sums = self.sum_over_ranks(totals.tolist())
        norm = self.deepspeed.get_global_grad_norm()  # None before the first step that was not skipped
        return StepResult(
            loss=sums[0] / max(1, targets),
            targets=targets,
            lr=lr,
            grad_norm=float("nan") if norm is None else float(norm),
            penalty=sums[2] / (len(batch) * self.world.size) if has_penalty else None,
            compensation=sums[1] / max(1, targets) if self.has_compensation else None,
            is_applied=bool(self.deepspeed.was_step_applied()),
        )

    @property
    def has_compensation(self) -> bool:
        """Whether HiddenKey adds the divergence of two passes to the loss."""
        return self.hidden_key is not None and self.hidden_key.config.has_compensation

    def _begin_step(self, step: int, lr: float, num_micro_batches: int) -> bool:
        """Set adapter and learning rates for the step; return whether the adapter adds a penalty in it."""
        adapter, config = self.adapter, self.config.adapter
        if adapter is not None:
            adapter.begin_step(step, self.deepspeed.optimizer, lr)
            adapter.set_penalty_weight(1 / num_micro_batches)
        else:
            for group in self.deepspeed.optimizer.param_groups:
                group["lr"] = lr
        if config.kind != "monteclora":
            return False
        if step == config.start_step:
            # DeepSpeed has updated the variational parameters by nothing since the first step, and AdamW's bias correction
            # would take that for experience.
            for flat in self._flats("variational"):
                self._state_of(flat)["step"].zero_()
        return step >= config.start_step

    def _losses(self, micro: MicroBatch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of a micro-batch and HiddenKey's compensation, both in nats, summed over the targets."""
        labels = micro.labels.to(self.device)
        if not self.has_compensation:
            return summed_cross_entropy(self._logits(micro, step), labels), torch.zeros((), device=self.device)
        assert self.hidden_key is not None
        is_target = labels != IGNORE
        if self.hidden_key.config.both_branches:
            first, other = self._logits(micro, step, copies=2).chunk(2)
            loss = (summed_cross_entropy(first, labels) + summed_cross_entropy(other, labels)) / 2
            second = other[is_target]
        else:
            # Before the pass that is trained, whose draws, penalty and activations are then the latest.
            with self.hidden_key.second_pass():
                second = self._logits(micro, step, branch=1)[is_target]
            first = self._logits(micro, step)
            loss = summed_cross_entropy(first, labels)
        return loss, self.hidden_key.compensation(first[is_target], second)

    def _logits(self, micro: MicroBatch, step: int, *, branch: int = 0, copies: int = 1) -> torch.Tensor:
        """Logits (copies * rows, seq_len, vocab) of a forward pass with the draws of this branch."""
        torch.manual_seed(micro_batch_seed(self.config.run.seed, step, micro.first_lane, branch))
        logits: torch.Tensor = self.deepspeed(
            input_ids=micro.input_ids.to(self.device).repeat(copies, 1),
            position_ids=micro.position_ids.to(self.device).repeat(copies, 1),
            use_cache=False,
        ).logits
        return logits

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """Sum each value over all ranks (a collective), in fp64: whole numbers are exact up to 2^53."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank (a collective)."""
        return self.sum_over_ranks([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on all ranks (a collective)."""
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shape of every trainable parameter."""
        return {name: tuple(parameter.ds_shape) for name, parameter in self.names.items()}

    def local_state(self) -> dict[str, torch.Tensor]:
        """This rank's fp32 slices: `<parameter>` and `<parameter>/<optimizer state>`, 1-D, on the CPU.

        Rank k holds elements [k*n, (k+1)*n) of the flattened parameter, n = ceil(numel / world size); the last
        slices are padded with zeros.
        """
        self._materialise_optimizer_state()
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self.names.items():
            state[name] = safe_get_local_fp32_param(parameter).detach().cpu().clone()
            for key in OPTIMIZER_STATES:
                state[f"{name}/{key}"] = safe_get_local_optimizer_state(parameter, key).detach().cpu().clone()
        return state

    def optimizer_steps(self) -> dict[str, int]:
        """Number of updates each parameter group has had, by its name (AdamW's bias correction depends on it)."""
        groups = self.deepspeed.optimizer.param_groups
        return {
            group["name"]: max(int(self._state_of(flat)["step"]) for flat in self._flats(group["name"]))
            for group in groups
        }

    def load_local_state(self, state: dict[str, torch.Tensor], optimizer_steps: dict[str, int]) -> None:
        """Set what local_state and optimizer_steps returned, the first cut for this world size."""
        self._materialise_optimizer_state()
        for name, steps in optimizer_steps.items():
            for flat in self._flats(name):
                self._state_of(flat)["step"] = torch.tensor(float(steps))
        for name, parameter in self.names.items():
            master = state[name]
            safe_set_local_fp32_param(parameter, master)
            for key in OPTIMIZER_STATES:
                safe_set_local_optimizer_state(parameter, state[f"{name}/{key}"], key)
            # The next forward reads the low-precision copy, which setting the master leaves alone.
            if parameter.ds_status == ZeroParamStatus.AVAILABLE:
                parameter.partition()
            parameter.ds_tensor.data.copy_(master.to(parameter.ds_tensor.dtype))

    def full_parameters(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Yield parameters one by one, whole and in the model's precision, on rank 0's CPU (None on other ranks).

        A collective: every rank must exhaust it. `names` None means all of them, frozen ones included.
        """
        for name, parameter in self.model.named_parameters():
            if names is not None and name not in names:
                continue
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().cpu().clone() if self.world.rank == 0 else None
            yield name, whole

    def close(self) -> None:
        """Leave the process group."""
        self.deepspeed.destroy()
        leave_distributed()

    def _flats(self, group: str) -> list[torch.Tensor]:
        """The fp32 tensors of this rank that the parameters of a group lie in; none of a group that there is not."""
        optimizer = self.deepspeed.optimizer
        names = [each["name"] for each in optimizer.param_groups]
        flats = enumerate(optimizer.fp32_partitioned_groups_flat)
        return [flat for index, flat in flats if names[optimizer.sub_group_to_group_id[index]] == group]

    def _state_of(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """AdamW's state of such a tensor; made, with zero moments, where it has not stepped yet, as its first step would."""
        state: dict[str, torch.Tensor] = self.deepspeed.optimizer.optimizer.state[flat]
        if not state:
            state["step"] = torch.tensor(0.0)
            state.update({key: torch.zeros_like(flat) for key in OPTIMIZER_STATES})
        return state

    def _materialise_optimizer_state(self) -> None:
        for flat in self.deepspeed.optimizer.fp32_partitioned_groups_flat:
            self._state_of(flat)


def parameter_groups(
    parameters: dict[str, nn.Parameter], adapter: Adapter | None, config: Config
) -> list[dict[str, Any]]:
    """Named groups: an adapter's own; without one, matrices with weight decay, norms and biases without."""
    if adapter is not None:
        return adapter.parameter_groups(config.optim.lr, config.optim.weight_decay)
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for parameter in parameters.values():
        num_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        groups["decay" if num_dims >= 2 else "no_decay"].append(parameter)
    decays = {"decay": config.optim.weight_decay, "no_decay": 0.0}
    # DeepSpeed drops empty groups, and whoever addresses groups by index would then hit the wrong one.
    return [{"name": name, "params": ps, "weight_decay": decays[name]} for name, ps in groups.items() if ps]
