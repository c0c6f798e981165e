"""The engine: what one optimizer step is, wherever the model's parts live.

The loss of a step is the sum of -log p over the step's target tokens on all ranks and micro-batches, divided once by
their number; so is the compensation of HiddenKey. Gradients are averaged over ranks, so each micro-batch is scaled by
world size / global targets. From the first forward to the end of the update the host never waits for the device: what
depends on values is known from the batch, and the step's results are read once, at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from training.batches import MicroBatch, StepBatch
from training.checkpoint.image import Copying
from training.checkpoint.writer import Writer
from training.config import Config
from training.model.assembly import Assembly
from training.model.loss_head import HiddenRequest, LossHead, LossRequest
from training.optim import parameter_groups, set_learning_rates
from training.placements import place
from training.randomness import micro_batch_seed
from training.ranks import distributed
from training.schedule import lr_factor
from training.watch.phases import Phases
from training.world import World


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step did, the same on all ranks."""

    loss: float
    """Nats per target token over the global batch."""
    targets: int
    """Target tokens of the global batch."""
    lr: float
    grad_norm: float
    """Global gradient norm before clipping; not finite when the step was skipped."""
    penalty: float | None
    """Variational penalty averaged over adapter layers, micro-batches and ranks; None in a step without one."""
    compensation: float | None
    """HiddenKey's weighted divergence of two passes, nats per target token; None without one."""
    is_applied: bool
    """False when a non-finite loss or gradient made all ranks skip the update."""


class Engine:
    """A model that can take a step, be evaluated, and hand out its state."""

    def __init__(
        self,
        assembly: Assembly,
        config: Config,
        ds_config: dict[str, Any],
        world: World,
        *,
        alive: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Place the model, with what is attached to it.

        Args:
            assembly: the model.
            config: of the run.
            ds_config: what placements.prepare has returned.
            world: this rank and all others.
            alive: is told what this rank begins with, several times in a step.
        """
        self.config, self.world, self._alive = config, world, alive
        self.adapter, self.hidden_key, model = assembly.adapter, assembly.hidden_key, assembly.model
        self.head = LossHead(model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.device = distributed.device_of(world)
        groups = parameter_groups(trained, self.adapter, config)
        self.placement = place(model, groups, config, ds_config, world, self.device)
        # A base is loaded in evaluation mode: without dropout and adapter noise.
        self.placement.model.train()
        self.phases = Phases(self.device)
        self._copying = Copying()

    @property
    def model(self) -> nn.Module:
        """The model itself; its parameters may be whole only inside a forward."""
        return self.placement.module

    def step(self, batch: StepBatch, step: int, *, targets: int) -> StepResult:
        """One optimizer step over this rank's micro-batches of step `step` (0-based).

        Args:
            batch: of this rank.
            step: number of the step.
            targets: target tokens of all ranks.
        """
        lr = self.config.optim.lr * lr_factor(step, self.config.train.steps, self.config.optim)
        has_penalty = self._begin_step(step, lr, num_micro_batches=len(batch.micro_batches))
        # Cross-entropy, compensation, penalty.
        totals = torch.zeros(3, device=self.device)
        for number, micro in enumerate(batch.micro_batches, start=1):
            self._alive(f"step {step + 1}: forward")
            with self.phases("forward"):
                losses = self._losses(micro.to(self.device), step)
                totals[:2] += losses.detach()
                if has_penalty and self.adapter is not None:
                    totals[2] += self.adapter.penalty().to(self.device)
                loss = losses.sum() * (self.world.size / max(1, targets))
                # Some infinite losses have finite gradients; the gradient of this factor's product never is.
                loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))
            self._alive(f"step {step + 1}: backward")
            with self.phases("backward"):
                self.placement.backward(loss, is_last=number == len(batch.micro_batches))
        self._alive(f"step {step + 1}: update")
        with self.phases("optimizer"):
            self._copying.hold()
            norm, is_applied = self.placement.update()
        if self.world.size > 1:
            dist.all_reduce(totals)
        # The one time in a step that the host waits for the device.
        cross_entropy, compensation, penalty, norm_value, applied = torch.cat(
            (totals.double(), norm.to(totals).double().view(1), is_applied.to(totals).double().view(1))
        ).tolist()
        return StepResult(
            loss=cross_entropy / max(1, targets),
            targets=targets,
            lr=lr,
            grad_norm=norm_value,
            penalty=penalty / (len(batch.micro_batches) * self.world.size) if has_penalty else None,
            compensation=compensation / max(1, targets) if self.has_compensation else None,
            is_applied=bool(applied),
        )

    @property
    def has_compensation(self) -> bool:
        """Whether HiddenKey adds the divergence of two passes to the loss."""
        return self.hidden_key is not None and self.hidden_key.config.has_compensation

    def _begin_step(self, step: int, lr: float, num_micro_batches: int) -> bool:
        """Set adapter and learning rates for the step; return whether the adapter adds a penalty in it."""
        adapter, config = self.adapter, self.config.adapter
        set_learning_rates(self.placement.optimizer.param_groups, lr, step, adapter)
        if adapter is not None:
            adapter.set_penalty_weight(1 / num_micro_batches)
        if config.kind != "monteclora":
            return False
        if step == config.start_step:
            # The variational parameters have been updated by nothing since the first step, and AdamW's bias correction
            # would take that for experience.
            for group in self.placement.optimizer.param_groups:
                if group["role"] == "variational":
                    self.placement.reset_optimizer_steps(group["name"])
        return step >= config.start_step

    def _losses(self, micro: MicroBatch, step: int) -> torch.Tensor:
        """Cross-entropy of a micro-batch and HiddenKey's compensation, both in nats, summed over the targets: (2,)."""
        request = LossRequest(index=micro.target_index, targets=micro.targets)
        if not self.has_compensation:
            return self._forward(micro, step, request)
        assert self.hidden_key is not None
        if self.hidden_key.config.both_branches:
            both = LossRequest(
                index=micro.target_index, targets=micro.targets, both_branches=True, compensation=self.hidden_key
            )
            return self._forward(micro, step, both, copies=2)
        # Before the pass that is trained, whose draws, penalty and activations are then the latest.
        with self.hidden_key.second_pass():
            reference = self._forward(micro, step, HiddenRequest(index=micro.target_index), branch=1)
        compensated = LossRequest(
            index=micro.target_index, targets=micro.targets, reference=reference, compensation=self.hidden_key
        )
        return self._forward(micro, step, compensated)

    def _forward(
        self, micro: MicroBatch, step: int, request: LossRequest | HiddenRequest, *, branch: int = 0, copies: int = 1
    ) -> torch.Tensor:
        """What the head is asked for, from a forward pass with the draws of this branch."""
        torch.manual_seed(micro_batch_seed(self.config.run.seed, step, micro.first_lane, branch))
        boundaries = micro.repeated_boundaries(copies)
        with self.head.asked(request):
            answer: torch.Tensor = self.placement.model(
                input_ids=micro.input_ids.repeat(copies, 1),
                position_ids=micro.position_ids.repeat(copies, 1),
                use_cache=False,
                cu_seq_lens_q=boundaries,
                cu_seq_lens_k=boundaries,
                max_length_q=micro.max_seqlen,
                max_length_k=micro.max_seqlen,
            ).logits
        return answer

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shape of every trainable parameter."""
        return self.placement.shapes()

    def state_names(self) -> dict[str, tuple[str, ...]]:
        """The optimizer states of every trainable parameter."""
        return self.placement.state_names()

    def local_views(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's fp32 slices of what trains and of its optimizer states; see `Placement.local_views`."""
        return self.placement.local_views()

    def copy_state(self, writer: Writer) -> Copying:
        """Have `writer` take this rank's slices; on a GPU beside the next forward and backward, whose update waits for it."""
        self._copying = writer.take(self.placement.local_views())
        return self._copying

    def optimizer_steps(self) -> dict[str, int]:
        """Number of updates each parameter group has had, by its name."""
        return self.placement.optimizer_steps()

    def load_local_state(self, state: Iterable[tuple[str, torch.Tensor]], optimizer_steps: dict[str, int]) -> None:
        """Set what local_views and optimizer_steps gave, the first cut for this world size."""
        self.placement.load_local_state(state, optimizer_steps)

    def full_parameters(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Yield whole parameters on rank 0 (a collective); see `Placement.full_parameters`."""
        return self.placement.full_parameters(names)

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on all ranks (a collective)."""
        return distributed.gather(value, self.world)

    def gather_to_rank_0(self, value: Any) -> list[Any] | None:
        """The value of every rank, in rank order, on rank 0; None on the others (a collective)."""
        return distributed.gather_to_rank_0(value, self.world)

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    def close(self) -> None:
        """Let go of the model, and leave the process group."""
        self.placement.close()
        distributed.leave_distributed()
