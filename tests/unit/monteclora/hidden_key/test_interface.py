"""What models of transformers compute with it: which keys are dropped, by which implementation, and that it stays finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from monteclora.errors import AdapterError
from monteclora.hidden_key import HiddenKeyConfig, attach_hidden_key
from monteclora.hidden_key.interface import Overlay, inner_attention
from tests.unit.monteclora.hidden_key.tiny_models import (
    MODELS,
    gradients,
    llama,
    packed_rows,
    padded_rows,
    roberta,
    rows,
)

ALMOST_ALL = 1 - 1e-9
"""A rate at which every draw in fp32 drops."""


def attention_weights(model: PreTrainedModel, **inputs: Tensor) -> list[Tensor]:
    """Weights [batch, heads, queries, keys] of every layer, which the implementation has to be `eager` for."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        found.append(output[1].detach())

    attentions = [module for module in model.modules() if hasattr(module, "hidden_key")]
    hooks = [module.register_forward_hook(keep) for module in attentions]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def relative_error(found: Tensor, expected: Tensor) -> float:
    return (torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)).item()


def dropped_keys(weights: Tensor) -> Tensor:
    """Keys [batch, heads, keys] that the last query gives no weight."""
    return weights[:, :, -1] == 0


@pytest.mark.parametrize("method", ["dropkey", "dropattention"])
@pytest.mark.parametrize("kind", ["llama", "roberta"])
def test_columns_are_dropped_for_all_queries_and_apart_for_heads_samples_and_layers(kind: str, method: str) -> None:
    model = MODELS[kind]("eager", spread=0.1).train()  # type: ignore[operator]
    config = HiddenKeyConfig(key_rate=0.3, hidden_rate=0, key_method=method, layers="all")  # type: ignore[arg-type]
    attach_hidden_key(model, config)
    torch.manual_seed(0)
    weights = attention_weights(model, **rows(4, 30))
    masks = []
    for layer in weights:
        dropped = dropped_keys(layer) if method == "dropkey" else layer[:, :, -1] < 1e-20
        seen = torch.ones(30, 30, dtype=torch.bool)
        seen = seen.tril() if kind == "llama" else seen
        has_kept = (seen & ~dropped.unsqueeze(2)).any(-1, keepdim=True)
        expected_zero = (dropped.unsqueeze(2) & has_kept) | ~seen
        assert torch.equal(layer < 1e-20, expected_zero)
        masks += [tuple(head.tolist()) for head in dropped.flatten(0, 1)]
    assert len(set(masks)) == len(masks) == 4 * 4 * len(weights)
    rate = torch.tensor(masks).double().mean().item()
    assert rate == pytest.approx(0.3, abs=4 * 0.46 / (len(masks) * 30) ** 0.5)


def test_elements_are_dropped_for_each_query() -> None:
    model = roberta("eager").train()
    attach_hidden_key(model, HiddenKeyConfig(key_rate=0.3, hidden_rate=0, key_pattern="element"))
    weights = torch.stack(attention_weights(model, **rows(4, 30)))
    assert (weights == 0).double().mean().item() == pytest.approx(0.3, abs=4 * 0.46 / weights.numel() ** 0.5)
    assert len({tuple(row.tolist()) for row in (weights == 0).flatten(0, -2)}) > 0.99 * weights[..., 0].numel()


def test_spans_are_runs_of_keys_in_every_document_of_a_packed_row() -> None:
    model = llama("eager").train()
    attach_hidden_key(model, HiddenKeyConfig(key_rate=0.5, hidden_rate=0, key_pattern="span", layers="all"))
    sizes = (6, 1, 4)
    for layer in attention_weights(model, **packed_rows(sizes)):
        start = 0
        for size in sizes:
            zero = layer[:, :, start + size - 1, start : start + size].flatten(0, 1) == 0
            # The only key of a document is never missing.
            assert set(zero.sum(1).tolist()) == ({0} if size == 1 else {size // 2})
            for row in zero.tolist():
                places = [index for index in range(size) if row[index]]
                assert not places or places[-1] - places[0] == len(places) - 1
            start += size


@pytest.mark.parametrize("method", ["dropkey", "dropattention"])
@pytest.mark.parametrize("pattern", ["column", "span", "element"])
@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("llama", rows()),
        ("llama", padded_rows()),
        ("llama", packed_rows()),
        ("roberta", rows()),
        ("roberta", padded_rows()),
    ],
    ids=["llama-rows", "llama-padded", "llama-packed", "roberta-rows", "roberta-padded"],
)
def test_eager_and_sdpa_agree(kind: str, inputs: dict[str, Tensor], pattern: str, method: str) -> None:
    config = HiddenKeyConfig(key_rate=0.4, key_pattern=pattern, key_method=method)  # type: ignore[arg-type]
    logits, grads = [], []
    for implementation in ("eager", "sdpa"):
        model = MODELS[kind](implementation).double().train()
        attach_hidden_key(model, config)
        torch.manual_seed(0)
        logits.append(model(**inputs).logits)
        logits[-1].square().sum().backward()
        grads.append(gradients(model))
    # LLaMA's own eager function takes its softmax in fp32.
    tolerance = 1e-5 if kind == "llama" else 1e-11
    assert relative_error(logits[0], logits[1]) < tolerance
    assert relative_error(*(torch.cat([grad.flatten() for grad in found.values()]) for found in grads)) < tolerance


@pytest.mark.parametrize("kind", ["llama", "roberta"])
def test_eager_and_sdpa_agree_in_single_precision(kind: str) -> None:
    logits = []
    for implementation in ("eager", "sdpa"):
        model = MODELS[kind](implementation).train()
        attach_hidden_key(model, HiddenKeyConfig(key_rate=0.4))
        torch.manual_seed(0)
        logits.append(model(**padded_rows()).logits)
    assert relative_error(*logits) < 1e-5


@pytest.mark.parametrize("method", ["dropkey", "dropattention"])
@pytest.mark.parametrize("pattern", ["column", "span", "element"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_dropping_everything_drops_nothing(implementation: str, pattern: str, method: str) -> None:
    config = HiddenKeyConfig(key_rate=ALMOST_ALL, hidden_rate=0, key_pattern=pattern, key_method=method, layers="all")  # type: ignore[arg-type]
    inputs_of = {"llama": packed_rows((5, 1, 6)), "roberta": rows()}
    for kind, inputs in inputs_of.items():
        model = MODELS[kind](implementation).double()
        expected = model.eval()(**inputs).logits
        attach_hidden_key(model.train(), config)
        assert relative_error(model(**inputs).logits, expected) < 1e-5


@pytest.mark.parametrize("method", ["dropkey", "dropattention"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_without_a_mask_causality_is_that_of_the_implementation(implementation: str, method: str) -> None:
    """`sdpa` lets a module without a mask be causal, `eager` does not."""
    model = llama(implementation).double().train()
    hidden = torch.randn(2, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cos_sin = model.model.rotary_emb(hidden, torch.arange(6).unsqueeze(0))
    attention = model.model.layers[0].self_attn
    expected = attention(hidden, position_embeddings=cos_sin, attention_mask=None)[0]
    for pattern in ("column", "element"):
        hidden_key = attach_hidden_key(
            model,
            HiddenKeyConfig(key_rate=ALMOST_ALL, key_pattern=pattern, key_method=method, layers="all"),  # type: ignore[arg-type]
        )
        found = attention(hidden, position_embeddings=cos_sin, attention_mask=None)[0]
        assert relative_error(found, expected) < 1e-5
        hidden_key.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["dropkey", "dropattention"])
@pytest.mark.parametrize("pattern", ["column", "span", "element"])
def test_everything_stays_finite(pattern: str, method: str, dtype: torch.dtype) -> None:
    for kind in ("llama", "roberta"):
        for implementation in ("sdpa", "eager"):
            model = MODELS[kind](implementation).to(dtype).train()
            for rate in (0.1, 0.9, ALMOST_ALL):
                hidden_key = attach_hidden_key(
                    model,
                    HiddenKeyConfig(key_rate=rate, key_pattern=pattern, key_method=method, layers="all"),  # type: ignore[arg-type]
                )
                for inputs in (rows(2, 1), rows(1, 2), padded_rows(3, 8), packed_rows((1, 1, 6))):
                    if kind == "roberta":
                        inputs.pop("position_ids", None)
                    model.zero_grad()
                    logits = model(**inputs).logits
                    logits.float().logsumexp(-1).sum().backward()
                    assert logits.isfinite().all()
                    assert all(grad.isfinite().all() for grad in gradients(model).values())
                hidden_key.detach()


def test_documents_of_a_packed_row_stay_apart() -> None:
    model = llama().train()
    attach_hidden_key(model, HiddenKeyConfig(key_rate=0.5, layers="all"))
    inputs = packed_rows((5, 3, 4))
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, position_ids=inputs["position_ids"]).logits
    logits[:, 5:8].square().sum().backward()
    assert embedded.grad is not None
    touched = embedded.grad.abs().sum(-1) > 0
    assert not touched[:, :5].any()
    assert not touched[:, 8:].any()
    assert touched[:, 5:8].all()


@pytest.fixture
def flash_like() -> Iterator[list[tuple[int, ...]]]:
    """An implementation that wants what flash attention does; it keeps the shapes of its queries, keys and values."""
    calls: list[tuple[int, ...]] = []

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        assert module.config._attn_implementation == "flash_like"
        assert isinstance(module.get_submodule(""), nn.Module)
        calls.append((query.shape[-1], key.shape[-1], value.shape[-1], query.shape[1] // key.shape[1]))
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("flash_like", attention)
    yield calls
    AttentionInterface._global_mapping.pop("flash_like")


@pytest.mark.parametrize(("method", "shapes"), [("dropkey", (16, 16, 16, 2)), ("dropattention", (16, 16, 16, 1))])
def test_any_implementation_can_be_inside(
    flash_like: list[tuple[int, ...]], method: str, shapes: tuple[int, ...]
) -> None:
    config = HiddenKeyConfig(key_rate=0.5, key_method=method, layers="upper_half")  # type: ignore[arg-type]
    logits = []
    for implementation in ("flash_like", "sdpa"):
        model = llama("sdpa").double().train()
        model.config._attn_implementation = implementation
        attach_hidden_key(model, config)
        torch.manual_seed(0)
        logits.append(model(**rows()).logits)
    torch.testing.assert_close(*logits)
    # Heads of 8 channels: as they came in the lower half; widened above.
    assert flash_like == [(8, 8, 8, 2)] * 2 + [shapes] * 2


def test_the_element_pattern_needs_a_dense_mask(flash_like: list[tuple[int, ...]]) -> None:
    model = llama()
    model.config._attn_implementation = "flash_like"
    with pytest.raises(
        AdapterError,
        match=r"^key_pattern element needs the attention implementation sdpa or eager, the model has flash_like; change "
        r"it \(model.set_attn_implementation\), or choose column or span$",
    ):
        attach_hidden_key(model, HiddenKeyConfig(key_pattern="element"))
    attach_hidden_key(model, HiddenKeyConfig(key_pattern="element", key_rate=0))


def test_drop_attention_in_half_precision_needs_sdpa(flash_like: list[tuple[int, ...]]) -> None:
    model = llama("sdpa").half().train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(key_rate=ALMOST_ALL, key_method="dropattention"))
    logits = model(**rows()).logits
    logits.float().square().mean().backward()
    assert logits.dtype == torch.float16
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    hidden_key.detach()
    model.config._attn_implementation = "flash_like"
    attach_hidden_key(model, HiddenKeyConfig(key_method="dropattention"))
    with pytest.raises(
        AdapterError,
        match=r"^key_method dropattention needs the range of bf16 or fp32, and flash_like computes in fp16; train in bf16, "
        "or use the attention implementation sdpa$",
    ):
        model(**rows())


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_attention_that_changes_its_weights_is_refused(name: str) -> None:
    model = llama("eager").train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig())
    with pytest.raises(
        AdapterError,
        match=f"^LlamaAttention uses {name}, which dropping keys does not combine with; set key_rate to 0$",
    ):
        model(**rows(), **{name: 1.0})
    with hidden_key.disabled():
        model(**rows(), **{name: 1.0})


def test_a_class_without_an_eager_function_is_refused() -> None:
    with pytest.raises(
        AdapterError,
        match=r"^Linear has no eager_attention_forward beside it; use attn_implementation sdpa for this model$",
    ):
        inner_attention(nn.Linear(1, 1), "eager")


def test_a_subclass_uses_the_eager_function_of_its_model() -> None:
    attention = llama("eager").model.layers[0].self_attn

    class Own(type(attention)):  # type: ignore[misc]
        pass

    own = Own(attention.config, 0)
    assert inner_attention(own, "eager") is inner_attention(attention, "eager")


def test_an_overlay_replaces_what_it_is_given() -> None:
    linear = nn.Linear(2, 3)
    seen = Overlay(linear, out_features=4)
    assert (seen.in_features, seen.out_features) == (2, 4)
    assert seen.weight is linear.weight
    assert not hasattr(seen, "num_key_value_groups")


@pytest.mark.parametrize("pattern", ["column", "span", "element"])
@pytest.mark.parametrize("method", ["dropkey", "dropattention"])
def test_nothing_waits_for_the_device(pattern: str, method: str) -> None:
    reads = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique_dim", "_unique2"}

    called: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    model = llama().train()
    attach_hidden_key(
        model,
        HiddenKeyConfig(key_pattern=pattern, hidden_pattern=pattern, key_method=method, layers="all"),  # type: ignore[arg-type]
    )
    attention = model.model.layers[0].self_attn
    hidden = torch.randn(2, 6, 32)
    positions = torch.arange(6).expand(2, -1)
    cos_sin = model.model.rotary_emb(hidden, positions)
    with Watch():
        attention(hidden, position_embeddings=cos_sin, attention_mask=None, position_ids=positions)[0].sum().backward()
        model.model.layers[0].mlp(hidden).sum().backward()
    assert "rand" in called
    assert not called & reads
