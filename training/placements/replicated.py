"""Every rank holds the whole model; gradients are reduced and optimizer state is shared out (ZeRO-1).

The trained parameters lie in buckets. A bucket's gradients are an fp32 matrix with a row per rank: row k holds elements
[k*n, (k+1)*n) of each of its parameters, n = ceil(numel / ranks), one parameter after the other. So a reduce-scatter gives
each rank the gradients of its share, the optimizer updates that share in fp32, and an all-gather brings the new weights
to all. A frozen weight never travels. Micro-batches are accumulated in fp32, and the reduction of a bucket starts as soon
as backward has finished its gradients. Nothing in a step waits for the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from training.config import Config
from training.optim import Muon, Slice, make_optimizer, materialised, state_names
from training.world import World

BUCKET_ELEMENTS = 1 << 25
"""Most elements of a bucket that holds more than one parameter: 128 MiB of gradients, large enough for the whole
bandwidth of a link and small enough to overlap with backward."""

NORM_ELEMENTS = 1 << 20
"""Elements whose squares are added up in fp32; the sums of such parts are added in fp64."""


class Replicated:
    """A `Placement` of whole weights on every rank."""

    def __init__(
        self, module: nn.Module, groups: list[dict[str, Any]], config: Config, world: World, device: torch.device
    ) -> None:
        """Take over the trained parameters of `module`, which is on `device` with the same values on all ranks."""
        self._config, self._world = config, world
        self.module = self.model = module.to(device).train()
        self.device = device
        self._names = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._buckets = _make_buckets(groups, list(self._names.values()), world, device)
        self.optimizer = make_optimizer(
            [{**group, "params": [b.master for b in self._buckets if b.group == group["name"]]} for group in groups],
            config.optim,
        )
        if isinstance(self.optimizer, Muon):
            names = {id(parameter): name for name, parameter in self._names.items()}
            for bucket in self._buckets:
                if any(group["uses_muon"] and group["name"] == bucket.group for group in groups):
                    self.optimizer.lay_out(bucket.master, bucket.slices(names))
        self._is_last = False
        self._next = 0
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(functools.partial(self._take_gradient, bucket))

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add the gradients of a micro-batch; see `Placement`."""
        self._is_last, self._next = is_last, 0
        for bucket in self._buckets:
            bucket.taken = 0
        loss.backward()

    def _take_gradient(self, bucket: Bucket, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        bucket.add(parameter, parameter.grad)
        parameter.grad = None
        # In the order of the buckets on every rank: collectives pair up by it.
        while self._is_last and self._next < len(self._buckets) and self._buckets[self._next].is_complete:
            self._buckets[self._next].start_reduction()
            self._next += 1

    def update(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip and take a step; see `Placement`."""
        for bucket in self._buckets[self._next :]:
            bucket.start_reduction()
        for bucket in self._buckets:
            bucket.finish_reduction()
        shares = [bucket.share for bucket in self._buckets]
        # Of parts, as fp64 all at once would be a copy of the gradients.
        norms = [torch.linalg.vector_norm(part) for share in shares for part in share.split(NORM_ELEMENTS)]
        squares = torch.stack(norms).double().square().sum()
        if self._world.size > 1:
            dist.all_reduce(squares)
        norm = (squares.sqrt() / self._world.size).float()
        is_finite = torch.isfinite(norm)
        # The gradients so far are sums over the ranks.
        factor = torch.ones_like(norm)
        if self._config.train.gradient_clipping:
            factor = (self._config.train.gradient_clipping / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(shares, factor / self._world.size)
        for bucket, share in zip(self._buckets, shares, strict=True):
            bucket.master.grad = share
        # As torch's fused optimizers understand it: at 1 nothing changes.
        self.optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self._publish()
        for bucket in self._buckets:
            bucket.clear()
        return norm, is_finite

    def _publish(self) -> None:
        """Bring every rank's masters to all ranks, as weights: one bucket while the one before it is written."""
        before: Bucket | None = None
        for bucket in self._buckets:
            bucket.start_gathering()
            if before is not None:
                before.finish_gathering()
            before = bucket
        if before is not None:
            before.finish_gathering()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shapes; see `Placement`."""
        return {name: tuple(parameter.shape) for name, parameter in self._names.items()}

    def state_names(self) -> dict[str, tuple[str, ...]]:
        """Names of optimizer states; see `Placement`."""
        return {name: state_names(self._config.optim, name, shape) for name, shape in self.shapes().items()}

    def load_local_state(self, state: Iterable[tuple[str, torch.Tensor]], optimizer_steps: dict[str, int]) -> None:
        """Set such slices; see `Placement`."""
        for (name, view), (key, value) in zip(self.local_views(), state, strict=True):
            assert name == key, (name, key)
            view.copy_(value)
        for group, steps in optimizer_steps.items():
            for each in self._states(group):
                each["step"] = torch.full_like(each["step"], steps)
        self._publish()

    def optimizer_steps(self) -> dict[str, int]:
        """Updates of every group; see `Placement`."""
        groups = dict.fromkeys(bucket.group for bucket in self._buckets)
        return {group: max(int(state["step"]) for state in self._states(group)) for group in groups}

    def reset_optimizer_steps(self, group: str) -> None:
        """Forget a group's number of updates; see `Placement`."""
        for state in self._states(group):
            state["step"].zero_()

    def full_parameters(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Whole parameters on rank 0; see `Placement`."""
        for name, parameter in self.module.named_parameters():
            if names is None or name in names:
                yield name, parameter.detach().to("cpu", copy=True) if self._world.rank == 0 else None

    def close(self) -> None:
        """Nothing is held that the process group does not hold."""

    def _states(self, group: str) -> list[dict[str, torch.Tensor]]:
        return [materialised(self.optimizer, bucket.master) for bucket in self._buckets if bucket.group == group]

    def local_views(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's slices; see `Placement`."""
        keys = self.state_names()
        places = {id(p): (bucket, place) for bucket in self._buckets for p, place in bucket.places.items()}
        for name, parameter in self._names.items():
            bucket, place = places[id(parameter)]
            yield name, bucket.master.detach()[place]
            for key in keys[name]:
                yield f"{name}/{key}", materialised(self.optimizer, bucket.master)[key][place]


class Bucket:
    """Parameters of one group whose gradients travel together."""

    def __init__(self, group: str, parameters: Sequence[nn.Parameter], world: World, device: torch.device) -> None:
        """Copy this rank's share of the parameters into an fp32 master."""
        self.group, self.parameters = group, list(parameters)
        self._ranks, self._rank = world.size, world.rank
        self.places: dict[torch.Tensor, slice] = {}
        """Where in a rank's row its slice of each parameter is."""
        width = 0
        for parameter in parameters:
            slice_size = math.ceil(parameter.numel() / world.size)
            self.places[parameter] = slice(width, width + slice_size)
            width += slice_size
        # Padding stays 0 in all of it. What is not padding is overwritten by a step's first micro-batch.
        self.gradients = torch.zeros(world.size, width, dtype=torch.float32, device=device)
        self.master = torch.zeros(width, dtype=torch.float32, device=device)
        for parameter in parameters:
            row = self._row(parameter.detach(), world.rank)
            self.master[self.places[parameter]][: row.numel()].copy_(row)
        self._dtype = parameters[0].dtype
        self._weights: torch.Tensor | None = None
        self._share: torch.Tensor | None = None
        self._work: Any = None
        self._missing = set(self.parameters)
        """Parameters that the step has given no gradient yet."""
        self.taken = 0
        """Parameters that the present backward has given gradients."""

    def _row(self, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """The elements of a parameter, or of what has its shape, that belong to a rank."""
        size = math.ceil(whole.numel() / self._ranks)
        return whole.reshape(-1)[rank * size : (rank + 1) * size]

    def slices(self, names: dict[int, str]) -> list[Slice]:
        """This rank's parts of matrices, `names` by the id of the parameter."""
        return [
            Slice(
                name=names[id(parameter)], shape=(parameter.shape[0], parameter.shape[1]), offset=place.start,
                start=self._rank * (place.stop - place.start), numel=self._row(parameter.detach(), self._rank).numel(),
            )
            for parameter, place in self.places.items()
        ]  # fmt: skip

    @property
    def is_complete(self) -> bool:
        """Whether backward has given the gradients of all parameters."""
        return self.taken == len(self.parameters)

    @property
    def share(self) -> torch.Tensor:
        """This rank's row of gradients, after finish_reduction the sum over the ranks."""
        assert self._share is not None
        return self._share

    def add(self, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add a parameter's gradient of a micro-batch."""
        place = self.places[parameter]
        size, flat = place.stop - place.start, gradient.reshape(-1)
        full_rows = flat.numel() // size
        pairs = [(self.gradients[:full_rows, place], flat[: full_rows * size].view(full_rows, size))]
        if rest := flat.numel() - full_rows * size:
            pairs.append((self.gradients[full_rows, place][:rest], flat[full_rows * size :]))
        for target, source in pairs:
            if parameter in self._missing:
                target.copy_(source)
            else:
                target.add_(source)
        self._missing.discard(parameter)
        self.taken += 1

    def start_reduction(self) -> None:
        """Begin to sum each row on the rank that it belongs to."""
        for parameter in self._missing:
            self.gradients[:, self.places[parameter]].zero_()
        if self._ranks == 1:
            self._share = self.gradients[0]
            return
        self._share = torch.empty_like(self.master)
        self._work = _collective("reduce_scatter_single", "reduce_scatter_tensor")(
            self._share, self.gradients.view(-1), async_op=True
        )

    def finish_reduction(self) -> None:
        """Have the sums ready for what follows on the device."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def start_gathering(self) -> None:
        """Begin to collect all ranks' masters, in the dtype of the weights."""
        if self._ranks == 1:
            return
        own = self.master.detach().to(self._dtype)
        self._weights = torch.empty(self._ranks, own.numel(), dtype=self._dtype, device=own.device)
        self._work = _collective("all_gather_single", "all_gather_into_tensor")(
            self._weights.view(-1), own, async_op=True
        )

    def finish_gathering(self) -> None:
        """Write what was collected into the parameters."""
        self.finish_reduction()
        rows = self.master.detach().unsqueeze(0) if self._weights is None else self._weights
        for parameter, place in self.places.items():
            for rank in range(self._ranks):
                target = self._row(parameter.detach(), rank)
                target.copy_(rows[rank, place][: target.numel()])
        self._weights = None

    def clear(self) -> None:
        """Forget the gradients."""
        self._missing = set(self.parameters)
        self.master.grad = None
        self._share = None


def _make_buckets(
    groups: list[dict[str, Any]], parameters: list[nn.Parameter], world: World, device: torch.device
) -> list[Bucket]:
    """Buckets of each group's parameters from the last to the first, in the order in which backward completes them."""
    order = {id(parameter): position for position, parameter in enumerate(parameters)}
    filled: list[tuple[str, list[nn.Parameter]]] = []
    for group in groups:
        size = BUCKET_ELEMENTS + 1
        for parameter in sorted(group["params"], key=lambda p: -order[id(p)]):
            if size + parameter.numel() > BUCKET_ELEMENTS:
                filled.append((group["name"], []))
                size = 0
            filled[-1][1].append(parameter)
            size += parameter.numel()
    filled.sort(key=lambda entry: -min(order[id(parameter)] for parameter in entry[1]))
    return [Bucket(name, members, world, device) for name, members in filled]


def _collective(new: str, old: str) -> Any:
    """A function of torch.distributed, to which torch 2.13 gave a new name, warning about the old one."""
    return getattr(dist, new, None) or getattr(dist, old)
