"""Attention of packed rows is softmax attention under an explicit block-diagonal mask, and makes no such mask."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from monteclora import HiddenKeyConfig, attach_hidden_key
from training.errors import ModelError
from training.model import attention
from training.model.attention import ATTENTION, attend, attention_for, document_mask, fits_kernel

ROWS, SEQ_LEN, VOCAB = 2, 24, 61
BOUNDARIES = [0, 5, 6, 24, 31, 38, 40, 41, 48]
"""Documents of the rows: two of equal length after each other, two of a single token, one that fills all but a bit."""


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
    """softmax(q k scale) v where visible [rows, queries, keys], head by head; output [rows, queries, heads, dim]."""
    group = query.shape[1] // key.shape[1]
    heads = []
    for head in range(query.shape[1]):
        q, k, v = query[:, head], key[:, head // group], value[:, head // group]
        logits = (q @ k.transpose(1, 2) * scale).masked_fill(~visible, -math.inf)
        heads.append(logits.softmax(-1) @ v)
    return torch.stack(heads, dim=2)


def visible_pairs(boundaries: list[int], rows: int, seq_len: int) -> Tensor:
    """[rows, queries, keys], pair by pair: the same document, and not behind the query."""
    document = [sum(place >= bound for bound in boundaries) for place in range(rows * seq_len)]
    return torch.tensor(
        [
            [
                [document[row * seq_len + q] == document[row * seq_len + k] and k <= q for k in range(seq_len)]
                for q in range(seq_len)
            ]
            for row in range(rows)
        ]
    )


class Module(torch.nn.Module):
    """An attention module, as far as the implementation looks at it."""

    layer_idx = 0


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    rows, seq_len = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    inner = draw(st.sets(st.integers(0, rows * seq_len)))
    return rows, seq_len, sorted(inner | {row * seq_len for row in range(rows + 1)})


def inputs(
    rows: int, seq_len: int, heads: int, key_heads: int, dim: int, keys: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + seq_len)
    shapes = [(rows, heads, seq_len, dim), *[(rows, key_heads, keys or seq_len, dim)] * 2]
    query, key, value = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    return query, key, value


def boundaries(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@given(layout=layouts(), heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]), scaling=st.sampled_from([None, 0.3]))
def test_values_and_gradients_are_those_of_a_block_diagonal_mask(
    layout: tuple[int, int, list[int]], heads: tuple[int, int], scaling: float | None
) -> None:
    rows, seq_len, bounds = layout
    ours, theirs = inputs(rows, seq_len, *heads, 8), inputs(rows, seq_len, *heads, 8)
    output, weights = attend(Module(), *ours, None, scaling=scaling, cu_seq_lens_q=boundaries(bounds))
    expected = softmax_attention(*theirs, visible_pairs(bounds, rows, seq_len), scaling or 8**-0.5)
    assert weights is None
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-11)
    weighting = torch.arange(output.numel(), dtype=output.dtype).view_as(output).cos()
    (output * weighting).sum().backward()
    (expected * weighting).sum().backward()
    for ours_at, theirs_at in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_at.grad, theirs_at.grad, rtol=1e-8, atol=1e-10)


def test_a_row_without_boundaries_is_one_document() -> None:
    query, key, value = inputs(2, 7, 4, 2, 8)
    output, _ = attend(Module(), query, key, value, None)
    expected = softmax_attention(query, key, value, visible_pairs([0, 7, 14], 2, 7), 8**-0.5)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("queries", [1, 3])
def test_queries_after_a_cache_are_the_last_of_the_keys(queries: int) -> None:
    query, key, value = inputs(2, queries, 4, 2, 8, keys=7)
    output, _ = attend(Module(), query, key, value, None, position_ids=torch.arange(7)[None, 7 - queries :])
    visible = visible_pairs([0, 7, 14], 2, 7)[:, 7 - queries :]
    torch.testing.assert_close(output, softmax_attention(query, key, value, visible, 8**-0.5), rtol=1e-9, atol=1e-11)


def test_a_mask_that_is_given_says_everything() -> None:
    query, key, value = inputs(1, 5, 2, 2, 8)
    visible = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    visible |= torch.eye(5, dtype=torch.bool)
    expected = softmax_attention(query, key, value, visible, 8**-0.5)
    additive = torch.zeros(1, 1, 5, 5, dtype=torch.float64).masked_fill(~visible[:, None], -math.inf)
    for mask in (visible[:, None], additive):
        output, _ = attend(Module(), query, key, value, mask, cu_seq_lens_q=boundaries([0, 2, 5]))
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-11)


def test_dropout_drops_weights_and_makes_up_for_them() -> None:
    query, key, value = inputs(1, 400, 2, 2, 8)
    torch.manual_seed(0)
    output, _ = attend(Module(), query, key, value, None, dropout=0.25, cu_seq_lens_q=boundaries(list(range(401))))
    kept = output[..., 0] != 0
    # A document of one token has a single weight, 1: it is dropped, or divided by what is kept on average.
    torch.testing.assert_close(output[kept], value.transpose(1, 2)[kept] / 0.75)
    assert 0.65 < kept.double().mean() < 0.85


@given(layout=layouts())
def test_the_mask_of_the_fallback_is_the_block_diagonal(layout: tuple[int, int, list[int]]) -> None:
    rows, seq_len, bounds = layout
    found = document_mask(boundaries(bounds), rows, seq_len)
    assert torch.equal(found, visible_pairs(bounds, rows, seq_len)[:, None])


@pytest.mark.parametrize(
    ("dtype", "dim", "value_dim", "dropout", "fits"),
    [
        (torch.bfloat16, 128, 128, 0.0, True), (torch.float16, 136, 136, 0.0, True), (torch.bfloat16, 256, 256, 0.0, True),
        (torch.float32, 128, 128, 0.0, False), (torch.bfloat16, 264, 264, 0.0, False), (torch.bfloat16, 20, 20, 0.0, False),
        (torch.bfloat16, 128, 64, 0.0, False), (torch.bfloat16, 128, 128, 0.1, False),
    ],
)  # fmt: skip
def test_what_the_kernel_takes(dtype: torch.dtype, dim: int, value_dim: int, dropout: float, fits: bool) -> None:
    query, value = (torch.empty(1, 2, 3, width, dtype=dtype, device="meta") for width in (dim, value_dim))
    assert fits_kernel(query, value, dropout) == fits


@pytest.mark.parametrize("has_gqa", [True, False])
def test_the_kernel_gets_documents_and_gives_rows(monkeypatch: pytest.MonkeyPatch, has_gqa: bool) -> None:
    def varlen(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1), **more: bool,
    ) -> Tensor:  # fmt: skip
        """torch's kernel by its documentation, on [tokens, heads, dim]; torch 2.11 knows no enable_gqa."""
        assert window_size == (-1, 0)
        assert max_q == max_k == 18
        assert torch.equal(cu_seq_q, cu_seq_k)
        assert cu_seq_q.dtype == torch.int32
        assert more == ({"enable_gqa": True} if has_gqa else {})
        assert has_gqa or query.shape[1] == key.shape[1]
        visible = visible_pairs(cu_seq_q.tolist(), 1, len(query))
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        assert scale is not None
        return softmax_attention(q, k, v, visible, scale)[0]

    monkeypatch.setattr(attention, "varlen_attn", varlen)
    monkeypatch.setattr(attention, "_KERNEL_HAS_GQA", has_gqa)
    query, key, value = inputs(ROWS, SEQ_LEN, 4, 2, 8)
    found = attention._kernel(query, key, value, boundaries(BOUNDARIES), 18, 0.4)
    expected = softmax_attention(query, key, value, visible_pairs(BOUNDARIES, ROWS, SEQ_LEN), 0.4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def llama(implementation: str, **settings: Any) -> Any:
    torch.manual_seed(4)
    shape = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCAB, max_position_embeddings=64, initializer_range=0.3, attn_implementation=implementation,
        **settings,
    )  # fmt: skip
    return LlamaForCausalLM(shape)


def packed() -> dict[str, Any]:
    ids = torch.randint(0, VOCAB, (ROWS, SEQ_LEN), generator=torch.Generator().manual_seed(2))
    starts = [max(bound for bound in BOUNDARIES if bound <= place) for place in range(ROWS * SEQ_LEN)]
    positions = torch.tensor([place - start for place, start in enumerate(starts)]).view(ROWS, SEQ_LEN)
    return {"input_ids": ids, "position_ids": positions, "use_cache": False}


def documents(device: str = "cpu") -> dict[str, Any]:
    cu = boundaries(BOUNDARIES).to(device)
    return {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 18, "max_length_k": 18}


def gradients(model: Any, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    logits.logsumexp(-1).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_whole_model_is_that_of_sdpa_with_the_mask_of_transformers(is_checkpointed: bool) -> None:
    ours, theirs = llama(ATTENTION).train(), llama("sdpa").train()
    if is_checkpointed:
        enable = getattr(ours, "activation_checkpointing_enable", None) or ours.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    found = ours(**packed(), **documents()).logits
    expected = theirs(**packed()).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected_at = gradients(theirs, expected)
    for name, gradient in gradients(ours, found).items():
        torch.testing.assert_close(gradient, expected_at[name], rtol=1e-4, atol=1e-4, msg=name)


def test_documents_do_not_see_each_other() -> None:
    model = llama(ATTENTION).eval()
    batch = packed()
    together = model(**batch, **documents()).logits.flatten(0, 1)
    ids = batch["input_ids"].flatten()
    for start, stop in itertools.pairwise(BOUNDARIES):
        alone = model(input_ids=ids[None, start:stop], use_cache=False).logits[0]
        torch.testing.assert_close(together[start:stop], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"key_pattern": "column"}, {"key_pattern": "span"}, {"key_method": "dropattention"},
        {"key_method": "dropattention", "key_pattern": "span", "rescale": False},
    ],
)  # fmt: skip
def test_hidden_key_goes_around_it(settings: dict[str, Any]) -> None:
    config = HiddenKeyConfig(key_rate=0.4, layers="all", compensation="none", **settings)
    assert attention_for(config) == ATTENTION
    logits = {}
    for name, more in ((ATTENTION, documents()), ("sdpa", {})):
        model = llama(name).train()
        attach_hidden_key(model, config)
        torch.manual_seed(9)
        logits[name] = model(**packed(), **more).logits
    plain = llama(ATTENTION)(**packed(), **documents()).logits
    torch.testing.assert_close(logits[ATTENTION], logits["sdpa"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[ATTENTION], plain, atol=0.1)


def test_hidden_key_in_elements_needs_a_mask() -> None:
    assert attention_for(None) == ATTENTION
    assert attention_for(HiddenKeyConfig(key_pattern="element")) == "sdpa"
    assert attention_for(HiddenKeyConfig(key_pattern="element", key_rate=0.0)) == ATTENTION
    attach_hidden_key(llama(attention_for(HiddenKeyConfig(key_pattern="element"))), HiddenKeyConfig())


class Largest(TorchDispatchMode):
    """Notes the most elements that a tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def test_nothing_has_the_size_of_a_mask() -> None:
    query, key, value = (torch.randn(1, 2, 512, 8, requires_grad=True) for _ in range(3))
    with Largest() as largest:
        output, _ = attend(Module(), query, key, value, None, cu_seq_lens_q=boundaries([0, 100, 300, 301, 512]))
        output.sum().backward()
    assert largest.elements < 512 * 512 / 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_on_a_device_asks_it_for_nothing(dtype: torch.dtype) -> None:
    """Tensors of the device meta have no values: whoever wanted one would raise. The dtypes take different ways."""
    with torch.device("meta"):
        model = llama(ATTENTION).to(dtype).train()
    batch = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in packed().items()}
    logits = model(**batch, **documents("meta")).logits
    logits.sum().backward()
    assert logits.shape == (ROWS, SEQ_LEN, VOCAB)
    assert model.model.layers[0].self_attn.k_proj.weight.grad.shape == (16, 32)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_compute_the_same() -> None:
    model, compiled = llama(ATTENTION), llama(ATTENTION)
    for layer in compiled.model.layers:
        layer.compile(backend="aot_eager")
    for bounds in (BOUNDARIES, [0, 24, 30, 48]):
        cu = boundaries(bounds)
        found = compiled(**packed(), cu_seq_lens_q=cu, max_length_q=24).logits
        expected = model(**packed(), cu_seq_lens_q=cu, max_length_q=24).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert gradients(compiled, found).keys() == gradients(model, expected).keys()


def test_padding_on_the_right_is_not_seen() -> None:
    ours, theirs = llama(ATTENTION).eval(), llama("sdpa").eval()
    ids = packed()["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    found, expected = (m(input_ids=ids, attention_mask=mask, use_cache=False).logits for m in (ours, theirs))
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


def test_generation_with_a_cache_is_that_of_sdpa() -> None:
    ids = packed()["input_ids"][:, :6]
    found, expected = (
        llama(name).eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
        for name in (ATTENTION, "sdpa")
    )  # fmt: skip
    assert torch.equal(found, expected)


def test_packed_rows_and_left_padding_are_refused_without_boundaries() -> None:
    model = llama(ATTENTION).eval()
    with pytest.raises(
        ValueError, match=r"positions restart: packed rows need cu_seq_lens_q, and rows padded on the left"
    ):
        model(**packed())
    ids = packed()["input_ids"][:, :6]
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with pytest.raises(ValueError, match="another implementation"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_what_llama_does_not_have_is_refused() -> None:
    query, key, value = inputs(1, 5, 2, 2, 8)
    attend(Module(), query, key, value, None, sliding_window=None)
    with pytest.raises(ModelError, match="Module uses sliding_window, which attention 'palimpsest' does not have"):
        attend(Module(), query, key, value, None, sliding_window=3)


def test_no_file_names_it(tmp_path: Path) -> None:
    model = llama(ATTENTION)
    model.save_pretrained(tmp_path)
    for path in tmp_path.glob("*.json"):
        assert ATTENTION not in path.read_text(), path.name
    loaded: Any = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation=ATTENTION)
    assert loaded.config._attn_implementation == ATTENTION
    attach_hidden_key(copy.deepcopy(loaded), HiddenKeyConfig())
    assert LlamaForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
