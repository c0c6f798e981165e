"""The loss of the output head is that of all logits, value and gradients, and there never are all logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from monteclora import HiddenKey, HiddenKeyConfig, LoRAConfig, MonteCLoRAConfig, attach_adapter, attach_hidden_key
from training.model import loss_head
from training.model.attention import ATTENTION
from training.model.loss_head import HiddenRequest, LossHead, LossRequest, chunk_rows

VOCAB, HIDDEN = 23, 6


@contextlib.contextmanager
def chunks_of(positions: int, vocab: int = VOCAB) -> Iterator[None]:
    before = dict(loss_head.CHUNK_BYTES)
    loss_head.CHUNK_BYTES["cpu"] = 4 * vocab * positions
    try:
        assert chunk_rows(vocab, "cpu") == positions
        yield
    finally:
        loss_head.CHUNK_BYTES.update(before)


class Model(nn.Module):
    """A model that is nothing but its head."""

    def __init__(self, dtype: torch.dtype = torch.float64, vocab: int = VOCAB, hidden: int = HIDDEN) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(hidden, vocab, bias=False).to(dtype)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.head(hidden)
        return output


def some(
    num_targets: int, *, tokens: int = 12, dtype: torch.dtype = torch.float64, vocab: int = VOCAB, hidden: int = HIDDEN
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of two rows, positions and targets."""
    generator = torch.Generator().manual_seed(num_targets)
    states = torch.randn(2, tokens // 2, hidden, generator=generator, dtype=torch.float64) * 2
    index = torch.randperm(tokens, generator=generator)[:num_targets].sort().values
    targets = torch.randint(0, vocab, (num_targets,), generator=generator)
    return states.to(dtype).requires_grad_(), index, targets


def by_all_logits(model: nn.Module, states: Tensor, index: Tensor, targets: Tensor) -> Tensor:
    logits = model(states).flatten(0, 1)
    return F.cross_entropy(logits[index], targets, reduction="sum")


@given(num_targets=st.integers(0, 12), chunk=st.sampled_from([1, 5, 100]), scale=st.floats(0.01, 10))
def test_value_and_gradients_are_those_of_all_logits(num_targets: int, chunk: int, scale: float) -> None:
    ours, theirs = Model(), Model()
    states, index, targets = some(num_targets)
    states_too = states.detach().clone().requires_grad_()
    with chunks_of(chunk), LossHead(ours).asked(LossRequest(index=index, targets=targets)):
        values = ours(states)
    expected = by_all_logits(theirs, states_too, index, targets)
    assert values.shape == (2,)
    assert values[1] == 0
    torch.testing.assert_close(values[0], expected, rtol=1e-12, atol=1e-12)
    (values.sum() * scale).backward()
    (expected * scale).backward()
    torch.testing.assert_close(states.grad, states_too.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.head.weight.grad, theirs.head.weight.grad, rtol=1e-10, atol=1e-12)


def test_gradients_are_the_slopes_of_the_value() -> None:
    model = Model()
    head = LossHead(model)
    states, index, targets = some(7)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        with head.asked(LossRequest(index=index, targets=targets)):
            return torch.func.functional_call(model, {"head.weight": weight}, hidden)[0]

    with chunks_of(3):
        assert torch.autograd.gradcheck(loss, (states, model.head.weight))


def test_without_targets_the_graph_is_whole() -> None:
    model = Model(torch.float32)
    states, index, targets = some(0, dtype=torch.float32)
    with LossHead(model).asked(LossRequest(index=index, targets=targets)):
        values = model(states)
    values.sum().backward()
    assert values.tolist() == [0, 0]
    assert torch.equal(states.grad, torch.zeros_like(states))  # type: ignore[arg-type]
    assert torch.equal(model.head.weight.grad, torch.zeros_like(model.head.weight))  # type: ignore[arg-type]


class Made(TorchDispatchMode):
    """Notes how many elements the tensors had that operators made, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.new: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.new |= {x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)}
        return result


@pytest.mark.parametrize("is_frozen", [True, False])
def test_there_are_never_all_logits_nor_a_gradient_that_nobody_asked_for(is_frozen: bool) -> None:
    vocab, hidden, tokens = 500, 80, 128
    model = Model(torch.float32, vocab, hidden).requires_grad_(not is_frozen)
    states, index, targets = some(100, tokens=tokens, dtype=torch.float32, vocab=vocab, hidden=hidden)
    with chunks_of(8, vocab), Made() as made, LossHead(model).asked(LossRequest(index=index, targets=targets)):
        model(states).sum().backward()
    # The probe sees a view of the weight, too, but nothing new of its size when it is frozen.
    assert max(made.new) == (tokens * hidden if is_frozen else vocab * hidden) < 100 * vocab
    assert 8 * vocab in made.new
    assert (model.head.weight.grad is None) == is_frozen


def test_half_precision_is_summed_and_accumulated_in_fp32() -> None:
    """Closer to fp64 than all logits in bf16, whose products of many positions are rounded once as ours are."""
    found = {}
    for name in ("fp64", "ours", "theirs"):
        model = Model(torch.bfloat16, 200, 32)
        states, index, targets = some(400, tokens=512, dtype=torch.bfloat16, vocab=200, hidden=32)
        if name == "fp64":
            model, states = model.double(), states.detach().double().requires_grad_()
        if name == "ours":
            with chunks_of(64, 200), LossHead(model).asked(LossRequest(index=index, targets=targets)):
                loss = model(states).sum()
            assert loss.dtype == torch.float32
        else:
            logits = model(states).flatten(0, 1)[index]
            loss = F.cross_entropy(logits if name == "fp64" else logits.float(), targets, reduction="sum")
        (loss / 3).backward()
        assert states.grad is not None
        assert model.head.weight.grad is not None
        assert states.grad.dtype == model.head.weight.grad.dtype == states.dtype
        found[name] = (loss.item(), states.grad.double(), model.head.weight.grad.double())
    exact, ours, theirs = found["fp64"], found["ours"], found["theirs"]
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    for k in (1, 2):
        error, their_error = ((x[k] - exact[k]).norm() / exact[k].norm() for x in (ours, theirs))
        assert error < 1.3 * their_error < 0.01


def test_the_scale_of_backward_is_not_rounded_to_half_precision() -> None:
    model = Model(torch.bfloat16)
    states, index, targets = some(12, dtype=torch.bfloat16)
    with LossHead(model).asked(LossRequest(index=index, targets=targets)):
        values = model(states)
    values.sum().backward(retain_graph=True)
    once = [states.grad, model.head.weight.grad]
    states.grad = model.head.weight.grad = None
    # In bf16, 0.3 is 0.3008; the roundings of many numbers, in contrast, cancel.
    (values.sum() * 0.3).backward()
    for before, after in zip(once, (states.grad, model.head.weight.grad), strict=True):
        assert before is not None
        assert after is not None
        assert float(after.double().norm() / before.double().norm()) == pytest.approx(0.3, rel=8e-4)


def llama(**settings: Any) -> Any:
    torch.manual_seed(4)
    shape = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61, max_position_embeddings=64, initializer_range=0.3, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(shape).train()


def batch() -> tuple[dict[str, Any], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 61, (2, 12), generator=generator)
    index = torch.tensor([0, 1, 4, 5, 6, 11, 12, 17, 20, 22])
    return {"input_ids": ids, "use_cache": False}, index, torch.randint(0, 61, (len(index),), generator=generator)


def chosen_logits(model: Any, inputs: dict[str, Any], index: Tensor, seed: int, copies: int = 1) -> Tensor:
    torch.manual_seed(seed)
    ids = inputs["input_ids"].repeat(copies, 1)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return torch.cat([part.flatten(0, 1)[index] for part in logits.chunk(copies)])


def losses_of_all_logits(model: Any, hidden_key: HiddenKey | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy and compensation as the method defines them, on the logits of whole forwards."""
    inputs, index, targets = batch()
    if hidden_key is not None and hidden_key.config.both_branches:
        passes = chosen_logits(model, inputs, index, 1, copies=2).chunk(2)
        entropies = [F.cross_entropy(x, targets, reduction="sum") for x in passes]
        return (entropies[0] + entropies[1]) / 2, hidden_key.compensation(*passes)
    second: Tensor | None = None
    if hidden_key is not None:
        with hidden_key.second_pass():
            second = chosen_logits(model, inputs, index, 2)
    first = chosen_logits(model, inputs, index, 1)
    loss = F.cross_entropy(first, targets, reduction="sum")
    if hidden_key is None or second is None:
        return loss, torch.zeros(())
    return loss, hidden_key.compensation(first, second)


def losses_of_the_head(model: Any, hidden_key: HiddenKey | None) -> Tensor:
    """The same by requests."""
    inputs, index, targets = batch()
    head, copies = LossHead(model), 1
    more: dict[str, Any] = {}
    if hidden_key is not None and hidden_key.config.both_branches:
        copies, more = 2, {"compensation": hidden_key, "both_branches": True}
    elif hidden_key is not None:
        torch.manual_seed(2)
        with hidden_key.second_pass(), head.asked(HiddenRequest(index=index)):
            reference = model(**inputs).logits
        assert len(reference) == len(index)
        assert not reference.requires_grad
        more = {"compensation": hidden_key, "reference": reference}
    torch.manual_seed(1)
    with head.asked(LossRequest(index=index, targets=targets, **more)):
        values: Tensor = model(input_ids=inputs["input_ids"].repeat(copies, 1), use_cache=False).logits
    return values


COMPENSATIONS = {
    "none": None,
    "kl": HiddenKeyConfig(key_rate=0.3, hidden_rate=0.3, compensation_weight=0.7),
    "js": HiddenKeyConfig(key_rate=0.3, hidden_rate=0.3, compensation="js"),
    "both branches": HiddenKeyConfig(key_rate=0.3, hidden_rate=0.3, both_branches=True),
}


@pytest.mark.parametrize("name", COMPENSATIONS)
@pytest.mark.parametrize("kind", ["untied", "tied", "adapted"])
def test_a_whole_model_has_the_losses_and_gradients_of_all_logits(kind: str, name: str) -> None:
    results = []
    for losses in (losses_of_all_logits, losses_of_the_head):
        model = llama(tie_word_embeddings=kind == "tied")
        if kind == "adapted":
            attach_adapter(model, LoRAConfig(rank=2, targets=("q_proj", "lm_head")), seed=3)
            model.lm_head.lora_B.data.normal_()
        config = COMPENSATIONS[name]
        hidden_key = None if config is None else attach_hidden_key(model, config)
        with chunks_of(3, 61):
            loss, compensation = losses(model, hidden_key)
        (0.4 * (loss + compensation)).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append((loss.detach(), compensation.detach(), gradients))
    (loss, compensation, gradients), (our_loss, our_compensation, our_gradients) = results
    assert (compensation > 0.01) == (name != "none")
    torch.testing.assert_close(our_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(our_compensation, compensation, rtol=1e-5, atol=0)
    assert our_gradients.keys() == gradients.keys()
    for n, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[n], gradient, rtol=1e-4, atol=1e-5, msg=n)


def test_an_adapted_head_without_targets_leaves_the_graph_whole() -> None:
    model = llama()
    attach_adapter(model, MonteCLoRAConfig(rank=2, targets=("lm_head",)), seed=3)
    inputs, index, targets = batch()
    with LossHead(model).asked(LossRequest(index=index[:0], targets=targets[:0])):
        values = model(**inputs).logits
    values.sum().backward()
    assert values.tolist() == [0, 0]
    assert model.lm_head.lora_B.grad is not None


def test_a_frozen_head_gets_no_gradient() -> None:
    model = llama()
    model.lm_head.requires_grad_(False)
    losses_of_the_head(model, None).sum().backward()
    assert model.lm_head.weight.grad is None
    assert model.model.norm.weight.grad is not None


def test_a_head_with_a_bias_counts_it() -> None:
    model = Model()
    model.head = nn.Linear(HIDDEN, VOCAB, dtype=torch.float64)
    states, index, targets = some(5)
    with LossHead(model).asked(LossRequest(index=index, targets=targets)):
        values = model(states)
    torch.testing.assert_close(values[0], by_all_logits(model, states, index, targets), rtol=1e-12, atol=0)


def test_between_requests_there_are_logits() -> None:
    model = llama().eval()
    inputs, index, targets = batch()
    names = [name for name, _ in model.named_parameters()]
    expected = model(**inputs).logits
    head = LossHead(model)
    with head.asked(LossRequest(index=index, targets=targets)):
        assert model(**inputs).logits.shape == (2,)
    assert torch.equal(model(**inputs).logits, expected)
    with pytest.raises(IndexError), head.asked(LossRequest(index=index + 100, targets=targets)):
        model(**inputs)
    assert torch.equal(model(**inputs).logits, expected)
    assert [name for name, _ in model.named_parameters()] == names
    head.remove()
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(model(**inputs).logits, expected)


def test_without_gradients_there_are_the_same_numbers() -> None:
    model = llama().eval()
    values = losses_of_the_head(model, None)
    with torch.no_grad():
        alone = losses_of_the_head(model, None)
    assert torch.equal(values, alone)
    assert not alone.requires_grad


def test_a_device_is_asked_for_nothing() -> None:
    """Tensors of the device meta have no values: whoever wanted one would raise."""
    config = HiddenKeyConfig(both_branches=True)
    with torch.device("meta"):
        model = llama(attn_implementation=ATTENTION).bfloat16()
    hidden_key = attach_hidden_key(model, config)
    ids = torch.zeros(4, 12, dtype=torch.int64, device="meta")
    index, targets = (torch.zeros(7, dtype=torch.int64, device="meta") for _ in range(2))
    documents = torch.zeros(5, dtype=torch.int32, device="meta")
    request = LossRequest(index=index, targets=targets, compensation=hidden_key, both_branches=True)
    with LossHead(model).asked(request):
        values = model(input_ids=ids, use_cache=False, cu_seq_lens_q=documents, max_length_q=12).logits
    values.sum().backward()
    assert model.lm_head.weight.grad.dtype == torch.bfloat16


def test_a_compensation_needs_two_passes() -> None:
    hidden_key = attach_hidden_key(llama(), HiddenKeyConfig())
    _, index, targets = batch()
    reference = torch.zeros(len(index), 32)
    for wrong in ({"compensation": hidden_key}, {"reference": reference}, {"both_branches": True}):
        with pytest.raises(ValueError, match="compares two passes: give a reference, or both branches"):
            LossRequest(index=index, targets=targets, **wrong)


def test_one_of_the_two_numbers_alone_has_no_gradient() -> None:
    model = llama()
    values = losses_of_the_head(model, attach_hidden_key(model, HiddenKeyConfig()))
    with pytest.raises(RuntimeError, match="to be added up before backward"):
        values[0].backward()
