"""Both methods against plain dense attention in fp64, the paper's gradients, and rows without a kept key."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from monteclora.hidden_key.attention import (
    OFFSET,
    additive_mask,
    dense_drop_attention,
    dropped_from_mask,
    normalized,
    with_key_bias,
    with_weighted_values,
)

BATCH, HEADS, LENGTH, DIM = 3, 4, 10, 6
SCALE = 0.37


def inputs(key_heads: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = (HEADS, key_heads, key_heads)
    q, k, v = (2 * torch.randn(BATCH, heads, LENGTH, DIM, generator=g, dtype=torch.float64) for heads in shapes)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def masks() -> dict[str, tuple[Tensor | None, bool, Tensor]]:
    """What the model gives: mask, is_causal; and what it means: visible [batch or 1, 1, queries, keys]."""
    ones = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    document = torch.tensor([0] * 4 + [1] + [2] * 5)
    packed = (document[:, None] == document[None]) & ones.tril()
    real = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    real[1, 6:] = False
    padded = ones & real[:, None, None]
    additive = torch.zeros(padded.shape, dtype=torch.float64).masked_fill(~padded, torch.finfo(torch.float64).min)
    return {
        "causal": (None, True, ones.tril()[None, None]),
        "bidirectional": (None, False, ones[None, None]),
        "packed": (packed[None, None].expand(BATCH, -1, -1, -1), False, packed[None, None]),
        "padded": (padded, False, padded),
        "additive": (additive, False, padded),
    }


def reference(
    q: Tensor, k: Tensor, v: Tensor, dropped: Tensor, visible: Tensor, method: str, rescale: bool = True
) -> Tensor:
    """What the paper writes, with -inf and without; a row whose visible keys are all dropped is left as it is."""
    group = q.shape[1] // k.shape[1]
    k, v = (torch.stack([x[:, head // group] for head in range(q.shape[1])], dim=1) for x in (k, v))
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * SCALE
    logits = logits.masked_fill(~visible, -torch.inf)
    plain = logits.softmax(-1)
    nothing_left = ~(visible & ~dropped).any(-1, keepdim=True)
    if method == "dropkey":
        weights = logits.masked_fill(dropped & ~nothing_left, -torch.inf).softmax(-1)
    elif rescale:
        kept = plain * (~dropped | nothing_left)
        weights = kept / kept.sum(-1, keepdim=True).detach()
    else:
        weights = plain * ~dropped
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def by_channels(
    q: Tensor, k: Tensor, v: Tensor, dropped: Tensor, mask: Tensor | None, causal: bool, method: str,
    rescale: bool = True,
) -> Tensor:  # fmt: skip
    dtype = q.dtype
    if method == "dropkey":
        wide_q, wide_k, wide_v = with_key_bias(q, k, v, dropped, SCALE)
    else:
        wide_q, wide_k, wide_v = with_weighted_values(q, k, v, dropped, rescale)
    assert wide_q.shape[-1] == wide_k.shape[-1] == wide_v.shape[-1]
    assert wide_q.shape[-1] % 8 == 0
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(wide_q.dtype)
    output = F.scaled_dot_product_attention(
        wide_q, wide_k, wide_v, attn_mask=mask, is_causal=causal, scale=SCALE, enable_gqa=True
    )
    return output[..., : v.shape[-1]] if method == "dropkey" else normalized(output, v.shape[-1], rescale, dtype)


def densely(
    q: Tensor, k: Tensor, v: Tensor, dropped: Tensor, mask: Tensor | None, causal: bool, method: str,
    rescale: bool = True,
) -> Tensor:  # fmt: skip
    if method == "dropkey":
        bias = dropped_from_mask(mask, dropped, q, causal)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SCALE, enable_gqa=True)
    output, weights = dense_drop_attention(q, k, v, dropped, mask, scale=SCALE, rescale=rescale, is_causal=causal)
    assert weights.shape == (*q.shape[:3], k.shape[2])
    return output.transpose(1, 2)


def draw(rate: float, num_rows: int, seed: int = 3) -> Tensor:
    return torch.rand(BATCH, HEADS, num_rows, LENGTH, generator=torch.Generator().manual_seed(seed)) < rate


def with_gradients(function: Callable[[Tensor, Tensor, Tensor], Tensor], *leaves: Tensor) -> list[Tensor]:
    leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    output = function(*leaves)
    towards = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [output.detach(), *torch.autograd.grad(output, leaves, towards.to(output.dtype))]


@pytest.mark.parametrize("method", ["dropkey", "dropattention"])
@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_values_and_gradients_are_the_dense_ones(method: str, kind: str, key_heads: int) -> None:
    mask, causal, visible = masks()[kind]
    leaves = inputs(key_heads)
    for rate in (0.0, 0.3, 0.9, 1.1):  # the last drops everything
        for form, num_rows in ((by_channels, 1), (densely, 1), (densely, LENGTH)):
            dropped = draw(rate, num_rows)
            expected = with_gradients(lambda q, k, v, d=dropped: reference(q, k, v, d, visible, method), *leaves)
            found = with_gradients(lambda q, k, v, d=dropped, f=form: f(q, k, v, d, mask, causal, method), *leaves)
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("kind", masks())
def test_drop_attention_without_rescaling_only_zeroes(kind: str) -> None:
    mask, causal, visible = masks()[kind]
    leaves = inputs()
    for rate in (0.4, 1.1):
        dropped = draw(rate, 1)
        expected = with_gradients(
            lambda q, k, v, d=dropped: reference(q, k, v, d, visible, "dropattention", False), *leaves
        )
        for form in (by_channels, densely):
            found = with_gradients(
                lambda q, k, v, d=dropped, f=form: f(q, k, v, d, mask, causal, "dropattention", False), *leaves
            )
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["dropkey", "dropattention"])
@pytest.mark.parametrize("form", [by_channels, densely])
def test_lower_precision_is_no_worse_than_its_rounding(
    dtype: torch.dtype, method: str, form: Callable[..., Tensor]
) -> None:
    mask, causal, visible = masks()["causal"]
    leaves = inputs(dtype=dtype)
    # In fp32 the logits of dropped keys are rounded at the size of the offset.
    tolerance = 2e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for rate in (0.3, 0.9, 1.1):
        dropped = draw(rate, 1)
        exact = [leaf.double() for leaf in leaves]
        expected = with_gradients(lambda q, k, v, d=dropped: reference(q, k, v, d, visible, method), *exact)
        found = with_gradients(lambda q, k, v, d=dropped: form(q, k, v, d, mask, causal, method), *leaves)
        for value, oracle in zip(found, expected, strict=True):
            assert value.dtype == dtype
            error = torch.linalg.vector_norm(value.double() - oracle) / torch.linalg.vector_norm(oracle)
            assert error < tolerance


def test_both_methods_give_the_same_output() -> None:
    q, k, v = inputs()
    for rate in (0.2, 0.7, 1.1):
        dropped = draw(rate, 1)
        outputs = [by_channels(q, k, v, dropped, None, True, method) for method in ("dropkey", "dropattention")]
        torch.testing.assert_close(*outputs)


def test_a_row_dropped_altogether_has_its_undropped_output() -> None:
    q, k, v = inputs()
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE, enable_gqa=True)
    dropped = draw(1.1, 1)
    for method in ("dropkey", "dropattention"):
        for form in (by_channels, densely):
            torch.testing.assert_close(form(q, k, v, dropped, None, True, method), plain)


def test_rows_that_the_mask_hides_altogether_stay_finite() -> None:
    visible = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    visible[0, :, :, :4] = False  # padding on the left: the first queries see nothing
    leaves = inputs(dtype=torch.float32)
    for method in ("dropkey", "dropattention"):
        for form in (by_channels, densely):
            for rate in (0.3, 1.1):
                dropped = draw(rate, 1)
                found = with_gradients(
                    lambda q, k, v, d=dropped, f=form, m=method: f(q, k, v, d, visible, False, m), *leaves
                )
                assert all(tensor.isfinite().all() for tensor in found)


def row_of_logits() -> tuple[Tensor, Tensor]:
    """Logits of one query row, and which keys are dropped."""
    g = torch.tensor([0.3, -1.2, 0.8, 1.5, -0.4], dtype=torch.float64)
    return g, torch.tensor([False, True, False, True, False])


def jacobian(method: str) -> Tensor:
    """d w' / d g of the channel form, read off an attention with values that are unit vectors."""
    g, dropped = row_of_logits()
    one, eye = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[None, None]

    def weights(logits: Tensor) -> Tensor:
        arguments = (one, logits.view(1, 1, 5, 1), eye, dropped.view(1, 1, 1, 5))
        q, k, v = with_key_bias(*arguments, 1.0) if method == "dropkey" else with_weighted_values(*arguments, True)
        output = F.scaled_dot_product_attention(q, k, v, scale=1.0).flatten()
        if method == "without NoGrad":
            return output[:5] / output[5]
        return output[:5] if method == "dropkey" else normalized(output, 5, True, torch.float64)

    return torch.autograd.functional.jacobian(weights, g)


def test_the_published_ratio_of_gradients_and_the_leak() -> None:
    g, dropped = row_of_logits()
    e = g.exp()
    total, kept_total = e.sum(), e[~dropped].sum()
    key, attention = jacobian("dropkey"), jacobian("dropattention")
    k = (1 - e / kept_total) / (1 - e / total)
    for u in (~dropped).nonzero().flatten().tolist():
        assert 0 < k[u] < 1
        torch.testing.assert_close(key[u, u] / attention[u, u], k[u])
        for m in dropped.nonzero().flatten().tolist():
            torch.testing.assert_close(attention[u, m], -e[u] * e[m] / (total * kept_total))
            assert key[u, m].abs() < 1e-15
    # Moving a logit of DropKey moves weight between keys; of DropAttention, it changes how much weight there is.
    torch.testing.assert_close(key.sum(0), torch.zeros(5, dtype=torch.float64))
    kept = ~dropped * e / kept_total
    torch.testing.assert_close(attention.sum(0), kept - e / total)


def test_drop_attention_without_the_stopped_gradient_is_drop_key() -> None:
    torch.testing.assert_close(jacobian("without NoGrad"), jacobian("dropkey"), atol=1e-10, rtol=1e-8)


def test_masks_of_every_kind_become_additive() -> None:
    query = torch.empty(1, 1, 2, 4, dtype=torch.bfloat16)
    low = torch.finfo(torch.bfloat16).min
    expected = torch.tensor([[[[0, low], [0, 0]]]], dtype=torch.bfloat16)
    assert torch.equal(additive_mask(None, query, 2, True), expected)
    assert torch.equal(additive_mask(expected == 0, query, 2, False), expected)
    assert additive_mask(expected, query, 2, False) is expected
    assert torch.equal(additive_mask(None, query, 2, False), torch.zeros_like(expected))


def test_an_additive_bias_that_hides_nothing_stays() -> None:
    query = torch.empty(1, 1, 1, 4)
    bias = torch.tensor([[[[-3.0, -1.0, -2e4]]]])
    dropped = torch.tensor([[[[True, False, False]]]])
    low = torch.finfo(torch.float32).min
    assert dropped_from_mask(bias, dropped, query, False).tolist() == [[[[low, -1.0, -2e4]]]]
    # With its second key gone, too, the row has nothing visible left and is not touched.
    assert torch.equal(dropped_from_mask(bias, torch.tensor([[[[True, True, False]]]]), query, False), bias)


def test_values_wider_than_keys_are_not_cut() -> None:
    q, k, _ = inputs()
    v = torch.randn(BATCH, 2, LENGTH, 30, dtype=torch.float64)
    visible = masks()["causal"][2]
    for method in ("dropkey", "dropattention"):
        dropped = draw(0.3, 1)
        found = by_channels(q, k, v, dropped, None, True, method)
        torch.testing.assert_close(found, reference(q, k, v, dropped, visible, method))


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_the_offset_is_taken_off_the_scaled_logits_of_each_query_head(key_heads: int) -> None:
    q, k, v = inputs(key_heads)
    dropped = draw(0.4, 1)
    wide_q, wide_k, _ = with_key_bias(q, k, v, dropped, SCALE)
    for head in range(HEADS):
        shared = head * key_heads // HEADS
        before = q[:, head] @ k[:, shared].mT * SCALE
        after = wide_q[:, head] @ wide_k[:, shared].mT * SCALE
        torch.testing.assert_close(after - before, (-OFFSET * dropped[:, head]).double().expand_as(before))


def test_the_offset_is_exact_in_every_format() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert torch.tensor(-OFFSET, dtype=dtype).item() == -OFFSET
