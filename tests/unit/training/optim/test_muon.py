from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.optim import Muon, Slice, muon

SHAPES = {"a": (7, 12), "b": (12, 7), "c": (5, 5), "d": (1, 9)}


def matrices(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def test_every_step_is_that_of_torchs_muon() -> None:
    ours = {name: nn.Parameter(value) for name, value in matrices().items()}
    theirs = {name: nn.Parameter(value.clone()) for name, value in matrices().items()}
    settings: dict[str, Any] = {"lr": 2e-2, "weight_decay": 0.1}
    optimizer = Muon([{"params": list(ours.values()), "uses_muon": True}], **settings)
    reference = torch.optim.Muon(
        list(theirs.values()), momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw", **settings
    )
    for step in range(6):
        for group in (optimizer.param_groups[0], reference.param_groups[0]):
            group["lr"] = 2e-2 * (step + 1) / 6
        gradients = matrices(step + 1)
        for name in SHAPES:
            ours[name].grad, theirs[name].grad = gradients[name], gradients[name].clone()
        optimizer.step()
        reference.step()
    for name, start in matrices().items():
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
        momentum = reference.state[theirs[name]]["momentum_buffer"]
        torch.testing.assert_close(optimizer.state[ours[name]]["momentum_buffer"], momentum, atol=1e-6, rtol=0)
        assert (ours[name] - start).abs().max() > 1e-2


def test_the_rest_takes_the_steps_of_adamw() -> None:
    ours, theirs = (nn.Parameter(torch.arange(4.0)) for _ in range(2))
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}
    optimizer, reference = Muon([{"params": [ours]}], **settings), torch.optim.AdamW([theirs], **settings)
    for step in range(5):
        gradient = torch.randn(4, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient, gradient.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(40, 10), (10, 40), (16, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    rank = min(shape)
    left = torch.linalg.qr(torch.randn(shape[0], rank, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(shape[1], rank, generator=generator))[0]
    matrix = left * torch.linspace(0.2, 5, rank) @ right.T
    found = muon.orthogonal(matrix)
    assert (found.dtype, found.shape) == (torch.bfloat16, shape)
    in_basis = left.T @ found.float() @ right
    values = in_basis.diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (in_basis - values.diag()).abs().max() < 0.05


def test_an_update_has_the_size_of_adamws() -> None:
    """Moonlight's scale: a root mean square of about 0.2 * lr, whatever the shape."""
    for rows, cols in ((64, 16), (16, 64), (32, 32)):
        p = nn.Parameter(torch.zeros(rows, cols))
        optimizer = Muon([{"params": [p], "uses_muon": True}], lr=1e-2)
        p.grad = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        assert p.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.2)


def test_matrices_of_a_flat_tensor() -> None:
    """With padding between them, which is not touched."""
    whole = {name: nn.Parameter(value) for name, value in matrices().items()}
    flat = nn.Parameter(torch.full((300,), 3.0))
    slices, offset = [], 2
    for name, value in matrices().items():
        slices.append(Slice(name=name, shape=SHAPES[name], start=0, numel=value.numel(), offset=offset))
        flat.data[offset : offset + value.numel()] = value.view(-1)
        offset += value.numel() + 5
    one, other = (Muon([{"params": ps, "uses_muon": True}], lr=1e-2) for ps in ([flat], list(whole.values())))
    one.lay_out(flat, slices)
    for step in range(3):
        flat.grad = torch.ones_like(flat)
        for each in slices:
            whole[each.name].grad = gradient = matrices(step + 1)[each.name]
            flat.grad[each.offset : each.offset + each.numel] = gradient.view(-1)
        one.step()
        other.step()
    used = torch.zeros(300, dtype=torch.bool)
    for each in slices:
        part = slice(each.offset, each.offset + each.numel)
        used[part] = True
        assert torch.equal(flat[part], whole[each.name].view(-1))
        assert torch.equal(
            one.state[flat]["momentum_buffer"][part], other.state[whole[each.name]]["momentum_buffer"].view(-1)
        )
    assert torch.equal(flat[~used], torch.full((int((~used).sum()),), 3.0))
    assert int(used.sum()) == sum(each.numel for each in slices)


def test_a_flat_tensor_keeps_its_states_while_it_is_in_no_group() -> None:
    """DeepSpeed puts a tensor into its group for the step alone."""
    flat = nn.Parameter(torch.zeros(6))
    optimizer = Muon([{"params": [flat], "uses_muon": True}])
    optimizer.lay_out(flat, [Slice(name="w", shape=(2, 3), start=0, numel=6, offset=0)])
    optimizer.param_groups[0]["params"] = []
    assert optimizer.states_of(flat) == ("momentum_buffer",)
    assert optimizer.states_of(nn.Parameter(torch.zeros(6))) == ("exp_avg", "exp_avg_sq")


@pytest.mark.parametrize(
    "change", [{"start": 1, "numel": 5}, {"numel": 5}, {"numel": 0}, {"shape": (2, 4)}], ids=lambda each: "-".join(each)
)
def test_a_matrix_must_be_there_as_a_whole(change: dict[str, Any]) -> None:
    flat = nn.Parameter(torch.zeros(8))
    optimizer = Muon([{"params": [flat], "uses_muon": True}])
    piece = Slice(**{"name": "up_proj", "shape": (2, 3), "start": 0, "numel": 6, "offset": 0, **change})
    optimizer.lay_out(flat, [piece])
    flat.grad = torch.zeros(8)
    message = "^the ranks don't have every element of up_proj once and in their order: "
    with pytest.raises(ValueError, match=message):
        optimizer.step()


def test_a_vector_is_no_matrix() -> None:
    flat = nn.Parameter(torch.zeros(8))
    optimizer = Muon([{"params": [flat], "uses_muon": True}])
    flat.grad = torch.zeros(8)
    with pytest.raises(ValueError, match=re.escape("a tensor of shape (8,) is no matrix; lay_out says what is in it")):
        optimizer.step()
