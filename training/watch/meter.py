"""What happened since the last line of metrics.jsonl: the numbers a user looks at."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from training.config import Config
from training.costs.flops import peak_flops, step_flops
from training.costs.shape import Shape
from training.progress import Progress
from training.watch.phases import Phases
from training.watch.traffic import Traffic


class Meter:
    """Adds up steps until a line is written."""

    def __init__(
        self,
        config: Config,
        shape: Shape,
        phases: Phases,
        *,
        device: torch.device,
        world_size: int,
        recomputed_layers: int = 0,
    ) -> None:
        """Of a run on `world_size` devices like this one.

        Args:
            config: of the run.
            shape: of the model.
            phases: in which the engine notes its time; emptied with every line.
            device: of this rank.
            world_size: number of ranks.
            recomputed_layers: decoder layers whose activations are recomputed in the backward pass.
        """
        forwards, backwards = config.hidden_key.passes()
        count = partial(step_flops, shape, config.adapter.build())
        self._model = _rates(partial(count, forwards=forwards, backwards=backwards))
        # One more forward pass of the share of the layers that is recomputed; the head is not part of any.
        per_token, _, per_pair = _rates(partial(count, forwards=backwards, backwards=0))
        share = recomputed_layers / shape.layers
        self._recomputed = (share * per_token, 0.0, share * per_pair)
        self._phases, self._traffic, self._device = phases, Traffic(), device
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = peak * world_size if peak else None
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self._steps = self._tokens = self._targets = self._pairs = 0
        self._seconds = self._data_seconds = 0.0
        self._communication_seconds = self._communication_bytes = 0.0
        self._phases.reset()

    def begin_step(self) -> None:
        """A step begins: what time passes and what is sent until `end_step` belongs to it."""
        self._began = time.perf_counter()
        self._traffic.start()

    def end_step(self, *, tokens: int, targets: int, pairs: int, data_seconds: float) -> float:
        """The step that has begun is done, in so many seconds of wall time, which are returned.

        Args:
            tokens: input tokens of all ranks.
            targets: of them, those with a target.
            pairs: of a query and a key it sees, in the attention of one layer, of all ranks.
            data_seconds: what the slowest rank waited for data.
        """
        seconds = time.perf_counter() - self._began
        self._steps += 1
        self._tokens += tokens
        self._targets += targets
        self._pairs += pairs
        self._seconds += seconds
        self._data_seconds += data_seconds
        self._communication_seconds += self._traffic.seconds
        self._communication_bytes += self._traffic.bytes
        return seconds

    @property
    def tokens_per_second(self) -> float:
        """Input tokens per second of all ranks together."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def flops(self) -> float:
        """Model FLOPs since the last line, of all ranks; recomputing is not counted."""
        return self._count(self._model)

    def _count(self, rates: tuple[float, float, float]) -> float:
        """FLOPs since the last line, at so many per token, target and pair."""
        return rates[0] * self._tokens + rates[1] * self._targets + rates[2] * self._pairs

    @property
    def mfu(self) -> float | None:
        """Model FLOPs as a fraction of what the devices could have done; None where their peak isn't known."""
        return self.flops / (self._seconds * self._peak) if self._peak and self._seconds else None

    def line(self, progress: Progress, result: Any, *, stall_seconds: float) -> dict[str, Any]:
        """A line of metrics.jsonl, with the engine's `result` of the last step.

        Seconds are sums since the last line. `step_seconds` is all of the steps' time and consists of data (the slowest
        rank's wait), forward, backward, optimizer and other (agreeing on the step, its bookkeeping); communication is what
        the host waited for collectives inside of these, unknown on a GPU, where it does not wait. Saving (`stall_seconds`)
        and evaluation are not part of it. Bytes and FLOPs are means per step, bytes those that this rank sent.
        """
        steps, flops = max(1, self._steps), self.flops
        phases = self._phases.seconds()
        named = [self._data_seconds, *phases.values()]
        return {
            "step": progress.step,
            "tokens_seen": progress.tokens_seen,
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "penalty": result.penalty,
            "compensation": result.compensation,
            "tokens_per_second": self.tokens_per_second,
            "target_tokens_per_second": self._targets / self._seconds if self._seconds else 0.0,
            "mfu": self.mfu,
            "flops": flops / steps,
            "hardware_flops": (flops + self._count(self._recomputed)) / steps,
            "peak_memory_bytes": peak_memory_bytes(self._device),
            "skipped_steps": progress.skipped_steps,
            "step_seconds": self._seconds,
            "data_seconds": self._data_seconds,
            **{f"{name}_seconds": phases.get(name, 0.0) for name in ("forward", "backward", "optimizer")},
            "other_seconds": max(0.0, self._seconds - sum(named)),
            "communication_seconds": None if self._device.type == "cuda" else self._communication_seconds,
            "communication_bytes": self._communication_bytes / steps,
            "stall_seconds": stall_seconds,
            "data_hash": progress.data_hash,
        }


def _rates(count: Callable[..., float]) -> tuple[float, float, float]:
    """What a count of FLOPs, which is linear in all three, gives for a token, for a target and for a pair."""
    token = count(tokens=1, targets=0, pairs=0)
    target = count(tokens=0, targets=1, pairs=0)
    pair = count(tokens=0, targets=0, pairs=1)
    return token, target, pair


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this rank has held: of its GPU, or the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
