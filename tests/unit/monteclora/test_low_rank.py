"""The one-node linear layer against plain autograd, finite differences, and what it may keep for backward."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monteclora import low_rank
from monteclora.lora import LoRALinear
from monteclora.low_rank import low_rank_linear, standard_normal, zero_gradient

F64 = torch.float64
FAN_IN, FAN_OUT, RANK = 6, 5, 3


def operands(dtype: torch.dtype = F64, shape: tuple[int, ...] = (2, 4)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "x": (*shape, FAN_IN),
        "weight": (FAN_OUT, FAN_IN),
        "bias": (FAN_OUT,),
        "a": (RANK, FAN_IN),
        "b": (FAN_OUT, RANK),
        "scale": (RANK,),
    }
    return {name: torch.randn(size, generator=generator, dtype=F64).to(dtype) for name, size in sizes.items()}


def composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    scale: Tensor | None = None,
    seed: int | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """The same function as autograd composes it; `kept` are the features of x that dropout leaves."""
    if scale is not None:
        assert seed is not None
        a = a + scale.unsqueeze(1) * standard_normal(a, seed)
    dropped = x if kept is None else x * kept / (1 - dropout)
    return F.linear(x, weight, bias) + scaling * F.linear(F.linear(dropped, a), b)


def mask(shape: tuple[int, ...], dropout: float, seed: int) -> Tensor:
    """The features that dropout keeps after this seed, read off an adapter whose update is its dropped input."""
    eye, zeros = torch.eye(FAN_IN, dtype=F64), torch.zeros(FAN_IN, FAN_IN, dtype=F64)
    torch.manual_seed(seed)
    return low_rank_linear(torch.ones(shape, dtype=F64), zeros, None, eye, eye, scaling=1.0, dropout=dropout) != 0


@pytest.mark.parametrize("shape", [(4,), (2, 4), (), (2, 2, 2), (0,), (2, 0)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_noise", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_output_and_gradients_are_those_of_the_composition(
    shape: tuple[int, ...], has_bias: bool, has_noise: bool, dropout: float
) -> None:
    tensors = {name: value.requires_grad_() for name, value in operands(shape=shape).items()}
    x, weight, bias, a, b, scale = tensors.values()
    noise: dict[str, Any] = {"scale": scale, "seed": 11} if has_noise else {}
    kept = mask((*shape, FAN_IN), dropout, seed=5) if dropout else None
    torch.manual_seed(5)
    one = low_rank_linear(x, weight, bias if has_bias else None, a, b, scaling=1.7, dropout=dropout, **noise)
    two = composed(x, weight, bias if has_bias else None, a, b, scaling=1.7, dropout=dropout, kept=kept, **noise)
    assert one.shape == (*shape, FAN_OUT)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    leaves = [x, weight, a, b, *([bias] if has_bias else []), *([scale] if has_noise else [])]
    upstream = torch.randn(one.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(
        torch.autograd.grad(one, leaves, upstream), torch.autograd.grad(two, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("has_noise", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_those_of_finite_differences(has_noise: bool, dropout: float) -> None:
    tensors = tuple(value.requires_grad_() for value in operands().values())

    def function(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        torch.manual_seed(5)
        noise: dict[str, Any] = {"scale": scale, "seed": 11} if has_noise else {}
        return low_rank_linear(x, weight, bias, a, b, scaling=1.7, dropout=dropout, **noise)

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("wanted", [(0,), (3,), (4,), (5,), (0, 5), (1, 2), (3, 4, 5)])
def test_gradients_do_not_depend_on_which_others_are_asked_for(wanted: tuple[int, ...]) -> None:
    def run(needed: tuple[int, ...]) -> dict[int, Tensor]:
        tensors = [value.requires_grad_(i in needed) for i, value in enumerate(operands().values())]
        torch.manual_seed(5)
        low_rank_linear(*tensors[:5], scaling=1.7, dropout=0.4, scale=tensors[5], seed=11).square().sum().backward()
        return {i: tensor.grad for i, tensor in enumerate(tensors) if tensor.grad is not None}

    found, everything = run(wanted), run(tuple(range(6)))
    assert tuple(found) == wanted
    assert all(torch.equal(grad, everything[i]) for i, grad in found.items())


def test_dropout_zeroes_features_independently_and_scales_the_rest_up() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000, FAN_IN, dtype=F64, generator=generator)
    eye, zeros = torch.eye(FAN_IN, dtype=F64), torch.zeros(FAN_IN, FAN_IN, dtype=F64)
    torch.manual_seed(0)
    dropped = low_rank_linear(x, zeros, None, eye, eye, scaling=1.0, dropout=0.3)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.7)
    error = math.sqrt(0.3 * 0.7 / x.numel())
    assert abs((~kept).double().mean() - 0.3) < 4 * error
    assert (torch.corrcoef(kept.T.double()) - eye).abs().max() < 4 / math.sqrt(len(x))
    # The frozen path is not touched.
    assert torch.equal(low_rank_linear(x, eye, None, zeros[:2], zeros[:, :2], scaling=1.0, dropout=0.3), x)


@pytest.mark.parametrize("has_noise", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_nothing_is_kept_for_backward_but_operands_the_rank_r_product_and_a_mask(
    has_noise: bool, dropout: float
) -> None:
    tensors = {name: value.requires_grad_() for name, value in operands(shape=(3, 50)).items()}
    x, weight, bias, a, b, scale = tensors.values()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    noise: dict[str, Any] = {"scale": scale, "seed": 11} if has_noise else {}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = low_rank_linear(x, weight, bias, a, b, scaling=1.7, dropout=dropout, **noise)
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    extra = [tensor for tensor in saved if tensor.untyped_storage().data_ptr() not in storages]
    hidden, *masks = sorted(extra, key=lambda tensor: tensor.dtype == torch.bool)
    assert hidden.shape == (3 * 50, RANK)
    noisy = a + scale.unsqueeze(1) * standard_normal(a, 11) if has_noise else a
    dropped = x if not masks else x * masks[0].view_as(x)
    torch.testing.assert_close(hidden, F.linear(dropped, noisy).view(-1, RANK))
    assert [(tensor.dtype, tensor.numel()) for tensor in masks] == [(torch.bool, x.numel())] * (dropout > 0)
    # One node, below the view that gives its rows the shape of x; it holds no tensor past autograd's back.
    assert y.grad_fn is not None
    ((node, _),) = y.grad_fn.next_functions
    assert node is not None
    assert type(node).__name__ == "_LowRankLinearBackward"
    assert not any(isinstance(value, Tensor) for value in vars(node).values())
    sources = [after for after, _ in node.next_functions if after is not None]
    assert {type(source).__name__ for source in sources} == {"AccumulateGrad"}


def test_an_in_place_activation_may_follow() -> None:
    x, weight, bias, a, b, _ = (value.requires_grad_() for value in operands().values())
    found = torch.autograd.grad(torch.relu_(low_rank_linear(x, weight, bias, a, b, scaling=1.7)).sum(), (x, a, b))
    wanted = torch.autograd.grad(torch.relu(composed(x, weight, bias, a, b, scaling=1.7)).sum(), (x, a, b))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)


def test_a_strided_input_and_gradient_are_taken_as_they_are() -> None:
    tensors = operands(shape=(4, 2))
    x = tensors["x"].transpose(0, 1).requires_grad_()
    rest = [tensors[name] for name in ("weight", "bias", "a", "b")]
    found = torch.autograd.grad(low_rank_linear(x, *rest, scaling=1.7).sum(), x)[0]  # a gradient of stride 0
    wanted = torch.autograd.grad(composed(x, *rest, scaling=1.7).sum(), x)[0]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["x", "weight", "a", "b", "scale"])
def test_a_value_that_is_not_finite_reaches_output_and_gradients(value: float, where: str) -> None:
    tensors = {name: tensor.requires_grad_() for name, tensor in operands(shape=(2,)).items()}
    with torch.no_grad():
        tensors[where].view(-1)[0] = value
    x, weight, bias, a, b, scale = tensors.values()
    y = low_rank_linear(x, weight, bias, a, b, scaling=1.7, scale=scale, seed=11)
    assert not y[0].isfinite().all()
    # Only what the value takes part in: the second row does not see the first of x.
    assert y[1].isfinite().all() == (where == "x")
    y.square().sum().backward()
    for name in ("a", "b", "scale") if where != "weight" else ("a", "b"):
        grad = tensors[name].grad
        assert grad is not None
        assert not grad.isfinite().all(), name


def test_noise_is_a_function_of_its_seed() -> None:
    a = operands()["a"]
    state = torch.get_rng_state()
    assert torch.equal(standard_normal(a, 7), standard_normal(a, 7))
    assert not torch.equal(standard_normal(a, 7), standard_normal(a, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert standard_normal(a.bfloat16(), 7).dtype == torch.float32
    assert standard_normal(a, 7).dtype == F64
    wide = standard_normal(torch.empty(64, 512), 7)
    assert abs(wide.mean()) < 4 / math.sqrt(wide.numel())
    assert abs(wide.var() - 1) < 4 * math.sqrt(2 / wide.numel())


def test_half_precision_operands_beside_wide_adapters() -> None:
    """Products in the input's precision, A's noise added in fp32, gradients in the precision of each parameter."""
    exact = {name: tensor.float().requires_grad_() for name, tensor in operands(shape=(64,)).items()}
    half = {name: tensor.detach().clone() for name, tensor in exact.items()}
    half |= {name: half[name].bfloat16() for name in ("x", "weight", "bias")}
    results = []
    for tensors in (exact, half):
        x, weight, bias, a, b, scale = (tensor.requires_grad_() for tensor in tensors.values())
        y = low_rank_linear(x, weight, bias, a, b, scaling=1.7, scale=scale, seed=11)
        assert y.dtype == x.dtype
        y.square().mean().backward()
        assert all(tensor.grad is not None and tensor.grad.dtype == tensor.dtype for tensor in tensors.values())
        results.append([y, *(tensor.grad for tensor in tensors.values())])
    for one, two in zip(*results, strict=True):
        assert (one - two).norm() < 0.03 * one.norm()


def test_autocast_is_that_of_a_linear_layer() -> None:
    tensors = {name: tensor.float().requires_grad_() for name, tensor in operands(shape=(64,)).items()}
    x, weight, bias, a, b, scale = tensors.values()
    leaves = tuple(tensors.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = low_rank_linear(x, weight, bias, a, b, scaling=1.7, scale=scale, seed=11)
        inside = torch.autograd.grad(y.float().square().mean(), leaves, retain_graph=True)
        assert F.linear(x, weight, bias).dtype == y.dtype == torch.bfloat16
    outside = torch.autograd.grad(y.float().square().mean(), leaves)
    wanted = torch.autograd.grad(
        composed(x, weight, bias, a, b, scaling=1.7, scale=scale, seed=11).square().mean(), leaves
    )
    for name, one, two, three in zip(tensors, inside, outside, wanted, strict=True):
        assert torch.equal(one, two), name
        assert one.dtype == torch.float32
        assert (one - three).norm() < 0.03 * three.norm(), name


def test_tensors_without_values_have_their_shapes_computed() -> None:
    x, weight, bias, a, b, _ = (value.to("meta").requires_grad_() for value in operands().values())
    y = low_rank_linear(x, weight, bias, a, b, scaling=1.7, dropout=0.1)
    y.sum().backward()
    assert y.shape == (2, 4, FAN_OUT)
    assert a.grad is not None
    assert a.grad.shape == a.shape


def test_a_second_derivative_is_refused() -> None:
    x, weight, bias, a, b, _ = (value.requires_grad_() for value in operands().values())
    (grad,) = torch.autograd.grad(
        low_rank_linear(x, weight, bias, a, b, scaling=1.7).square().sum(), a, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_zero_gradient_is_the_parameter_with_a_gradient_of_zeros() -> None:
    parameter = torch.randn(3, requires_grad=True)
    frozen = zero_gradient(parameter)
    assert torch.equal(frozen, parameter)
    (frozen * math.nan).sum().backward()
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, torch.zeros(3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, in what it imports to compile
def test_compiled_layers_have_the_gradients_of_eager_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers with dropout: inductor fuses the sums of gradients between them with what scales them."""
    from torch._inductor import config, cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler for CPUs")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    net = nn.Sequential(*(LoRALinear(nn.Linear(16, 16), rank=4, scaling=1.7, dropout=0.4) for _ in range(2)))
    leaves = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in leaves.values():
            parameter.normal_()
    x = leaves["x"] = torch.randn(8, 16).requires_grad_()  # type: ignore[assignment]

    def gradients(function: Any) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        return torch.autograd.grad(function(x).square().mean(), tuple(leaves.values()))

    # With eager's random numbers. (Undone by monkeypatch, these settings would be gone for whoever compiles next.)
    with config.patch(compile_threads=1, fallback_random=True):
        found = gradients(torch.compile(net, fullgraph=True))
    wanted = gradients(net)
    for name, one, two in zip(leaves, found, wanted, strict=True):
        assert (one - two).norm() < 1e-5 * two.norm(), name


def test_noise_is_drawn_again_in_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it stored, the second draw would not be asked for."""
    seeds: list[int] = []

    def draw(like: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return standard_normal(like, seed)

    monkeypatch.setattr(low_rank, "standard_normal", draw)
    x, weight, bias, a, b, scale = (value.requires_grad_() for value in operands().values())
    y = low_rank_linear(x, weight, bias, a, b, scaling=1.7, scale=scale, seed=11)
    assert seeds == [11]
    y.sum().backward()
    assert seeds == [11, 11]
