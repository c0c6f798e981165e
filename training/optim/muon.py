"""Muon: momentum made orthogonal, for matrices that lie in slices on many ranks; AdamW for everything else.

The rule is Keller Jordan's (https://kellerjordan.github.io/posts/muon/), with Nesterov momentum and the scaling of Moonlight
(Liu et al., arXiv 2502.16982, section 2.2), which gives an update the size that AdamW's has, so that both take the same
learning rate and weight decay. For a matrix of shape (rows, cols):

    m <- momentum * m + (1 - momentum) * g
    u  = orthogonal((1 - momentum) * g + momentum * m)
    p <- p - lr * weight_decay * p - lr * 0.2 * sqrt(max(rows, cols)) * u

Momentum and update are element-wise, so they stay in slices, as checkpoints want them. Only `orthogonal` needs whole
matrices: in rounds of as many matrices as there are ranks, each rank gets one, and gives back what each rank has a slice of.
That moves 4 bytes per element of a matrix, and no rank ever holds more than about one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from training.optim.states import flag_of, materialised

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of the iteration x <- a x + b (x x') x + c (x x')^2 x."""
NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Elements [start, start + numel) of a flattened matrix, at [offset, offset + numel) of a rank's flat tensor."""

    name: str
    shape: tuple[int, int]
    start: int
    numel: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class _Round:
    """A matrix per rank, except that the last round can have fewer."""

    slices: list[Slice | None]
    """This rank's part of each rank's matrix."""
    shape: tuple[int, int] | None
    """Of this rank's own matrix."""
    sizes: list[int]
    """Elements of it that come from each rank."""

    def pieces(self) -> list[Slice]:
        """The parts that this rank has, empty ones left out."""
        return [piece for piece in self.slices if piece is not None and piece.numel]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What is in a tensor of this rank, and where its whole matrices are worked on."""

    slices: list[Slice]
    device: torch.device
    is_shared: bool
    """Whether other ranks have the rest of the matrices."""


class Muon(torch.optim.Optimizer):
    """Muon for the groups with `uses_muon`, fused AdamW for the others.

    The state of a tensor is `step`, the number of updates, with `momentum_buffer` in the former and AdamW's `exp_avg` and
    `exp_avg_sq` in the latter. As with torch's fused optimizers, a step changes nothing when the attribute `found_inf` (a
    float32 scalar) is set and 1; the host never waits for its value.
    """

    MATRIX_STATES = ("momentum_buffer",)
    OTHER_STATES = ("exp_avg", "exp_avg_sq")
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """Take groups of tensors; betas and eps are AdamW's."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "uses_muon": False}
        super().__init__(params, defaults)
        self._layouts: dict[Tensor, _Layout] = {}
        self._rounds: dict[tuple[Tensor, ...], list[_Round]] = {}

    def lay_out(self, flat: Tensor, slices: Sequence[Slice], *, device: torch.device | None = None) -> None:
        """Say which parts of which matrices lie in a flat tensor of this rank; what is in no slice is padding.

        The ranks of the process group hold consecutive parts of each matrix in the order of the ranks. The first step of
        tensors, together or one after the other in the same order on all ranks, finds out what the others have. A
        two-dimensional tensor that is nowhere laid out is a matrix itself.

        Args:
            flat: a 1-D tensor of a group with `uses_muon`.
            slices: this rank's parts; a matrix of which it has nothing can be left out.
            device: where whole matrices are worked on and ranks exchange them, when it is not that of `flat`.
        """
        is_shared = dist.is_initialized() and dist.get_world_size() > 1
        self._layouts[flat] = _Layout(slices=list(slices), device=device or flat.device, is_shared=is_shared)

    def states_of(self, tensor: Tensor) -> tuple[str, ...]:
        """Names of the tensor's element-wise states."""
        return self.MATRIX_STATES if self._is_matrix(tensor) else self.OTHER_STATES

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every tensor that has a gradient (a collective for those that are laid out on several ranks).

        Raises:
            ValueError: a tensor is neither laid out nor a matrix, or the ranks together don't have every element of every
                matrix once and in order.
        """
        for group in self.param_groups:
            tensors = [tensor for tensor in group["params"] if tensor.grad is not None]
            if not group["uses_muon"]:
                self._adamw(tensors, group)
                continue
            shared = [tensor for tensor in tensors if self._layout_of(tensor).is_shared]
            alone = [[tensor] for tensor in tensors if not self._layout_of(tensor).is_shared]
            for together in [shared, *alone] if shared else alone:
                self._muon(together, group["lr"], group["lr"] * group["weight_decay"])

    def _is_matrix(self, tensor: Tensor) -> bool:
        if tensor in self._layouts:
            return True
        groups = (group for group in self.param_groups if group["uses_muon"])
        return any(tensor is each for group in groups for each in group["params"])

    def _layout_of(self, tensor: Tensor) -> _Layout:
        if tensor not in self._layouts:
            if tensor.ndim != 2:
                raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is no matrix; lay_out says what is in it")
            rows, cols = tensor.shape
            whole = Slice(name="whole", shape=(rows, cols), start=0, numel=tensor.numel(), offset=0)
            self._layouts[tensor] = _Layout(slices=[whole], device=tensor.device, is_shared=False)
        return self._layouts[tensor]

    def _rounds_of(self, tensors: list[Tensor], layout: _Layout) -> list[_Round]:
        """The rounds in which the matrices of these tensors are worked on; the first time a collective."""
        key = tuple(tensors)
        if key not in self._rounds:
            mine = [piece for tensor in tensors for piece in self._layouts[tensor].slices]
            everyone: list[Any] = [mine]
            if layout.is_shared:
                everyone = [None] * dist.get_world_size()
                dist.all_gather_object(everyone, mine)
            self._rounds[key] = _rounds(everyone, dist.get_rank() if layout.is_shared else 0)
        return self._rounds[key]

    def _muon(self, tensors: list[Tensor], lr: float, decay: float) -> None:
        """Update tensors whose matrices are exchanged together, so that every rank has one to work on."""
        layout, found_inf = self._layouts[tensors[0]], flag_of(self, tensors[0])
        parts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for tensor in tensors:
            state = materialised(self, tensor)
            state["step"] += 1 if found_inf is None else ~found_inf
            flats = (tensor.view(-1), tensor.grad.reshape(-1), state["momentum_buffer"].view(-1))  # type: ignore[union-attr]
            for piece in self._layouts[tensor].slices:
                weight, gradient, mean = (flat.narrow(0, piece.offset, piece.numel) for flat in flats)
                parts[piece.name] = weight, gradient, mean
        for each in self._rounds_of(tensors, layout):
            directions = []
            for piece in each.pieces():
                _, gradient, mean = parts[piece.name]
                if found_inf is not None:
                    gradient = torch.where(found_inf, mean, gradient)  # which leaves the mean as it is
                mean.lerp_(gradient, 1 - MOMENTUM)
                directions.append(gradient.lerp(mean, MOMENTUM).bfloat16())
            for piece, update in zip(each.pieces(), _orthogonal_slices(directions, each, layout), strict=True):
                weight = parts[piece.name][0]
                scale = 0.2 * math.sqrt(max(piece.shape))
                change = update.to(weight).mul_(lr * scale).add_(weight, alpha=decay)
                if found_inf is not None:
                    change.mul_(~found_inf)
                weight.sub_(change)

    def _adamw(self, tensors: list[Tensor], group: dict[str, Any]) -> None:
        if not tensors:
            return
        states = [materialised(self, tensor) for tensor in tensors]
        adamw(
            tensors,
            [tensor.grad for tensor in tensors],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix [rows, cols] near 1 (about 0.7 to 1.2), in bf16, by Newton-Schulz iterations."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16()
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def _rounds(everyone: Sequence[Sequence[Slice]], rank: int) -> list[_Round]:
    """The rounds of a rank, from the slices of all ranks."""
    parts: dict[str, list[Slice | None]] = {}
    for index, pieces in enumerate(everyone):
        for piece in pieces:
            parts.setdefault(piece.name, [None] * len(everyone))[index] = piece
    matrices = [(_whole_shape(name, pieces), name) for name, pieces in parts.items()]
    # Matrices of a round are of one size as far as possible, so that no rank waits long for another.
    matrices.sort(key=lambda each: (-math.prod(each[0]), each[0], each[1]))
    rounds = []
    for first in range(0, len(matrices), len(everyone)):
        here = matrices[first : first + len(everyone)]
        mine = here[rank] if rank < len(here) else None
        sizes = [0 if piece is None else piece.numel for piece in parts[mine[1]]] if mine else [0] * len(everyone)
        slices = [parts[name][rank] for _, name in here] + [None] * (len(everyone) - len(here))
        rounds.append(_Round(slices=slices, shape=mine[0] if mine else None, sizes=sizes))
    return rounds


def _whole_shape(name: str, pieces: Sequence[Slice | None]) -> tuple[int, int]:
    """The shape of a matrix of which each rank has one of these pieces."""
    there = [piece for piece in pieces if piece is not None and piece.numel]
    ends = [0, *itertools.accumulate(piece.numel for piece in there)]
    shapes = {piece.shape for piece in there}
    if len(shapes) != 1 or [piece.start for piece in there] != ends[:-1] or ends[-1] != math.prod(there[0].shape):
        raise ValueError(f"the ranks don't have every element of {name} once and in their order: {there}")
    return shapes.pop()


def _orthogonal_slices(directions: list[Tensor], each: _Round, layout: _Layout) -> list[Tensor]:
    """This rank's slices of the orthogonal matrices of a round, from its slices of the matrices, all 1-D in bf16."""
    sizes = [0 if piece is None else piece.numel for piece in each.slices]
    if not layout.is_shared:
        return [orthogonal(flat.to(layout.device).view(each.shape or ())).reshape(-1) for flat in directions]
    sent = torch.cat(directions).to(layout.device) if directions else _empty(0, layout)
    received = _empty(sum(each.sizes), layout)
    dist.all_to_all_single(received, sent, each.sizes, sizes)
    result = received if each.shape is None else orthogonal(received.view(each.shape)).reshape(-1)
    returned = torch.empty_like(sent)
    dist.all_to_all_single(returned, result, sizes, each.sizes)
    return [piece for piece in returned.split(sizes) if piece.numel()]


def _empty(numel: int, layout: _Layout) -> Tensor:
    return torch.empty(numel, dtype=torch.bfloat16, device=layout.device)
