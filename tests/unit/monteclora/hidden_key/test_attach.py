"""HiddenKey on whole models: off in evaluation, in the right layers, with every way of finetuning, and off again."""

from __future__ import annotations

import copy
import json
import re
import textwrap
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from monteclora import HiddenKey, LoRAConfig, MonteCLoRAConfig, attach_adapter
from monteclora.errors import AdapterError
from monteclora.hidden_key import HiddenKeyConfig, attach_hidden_key, bidirectional_kl
from tests.unit.monteclora.hidden_key.tiny_models import (
    MODELS,
    gradients,
    llama,
    packed_rows,
    padded_rows,
    roberta,
    rows,
)

OFF = HiddenKeyConfig(key_rate=0, hidden_rate=0)


def run(model: PreTrainedModel, inputs: dict[str, Tensor], seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return model(**inputs, **settings)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", MODELS)
def test_evaluation_is_bit_equal_and_training_is_not(kind: str, implementation: str) -> None:
    model = MODELS[kind](implementation).eval()
    for inputs in (rows(), padded_rows()):
        expected = run(model, inputs).logits
        hidden_key = attach_hidden_key(model, HiddenKeyConfig())
        assert torch.equal(run(model, inputs).logits, expected)
        model.train()
        assert not torch.allclose(run(model, inputs).logits, expected)
        assert not torch.equal(run(model, inputs, seed=1).logits, run(model, inputs, seed=2).logits)
        assert torch.equal(run(model, inputs, seed=1).logits, run(model, inputs, seed=1).logits)
        hidden_key.detach()
        model.eval()


@pytest.mark.parametrize(
    ("kind", "num_layers", "layers", "expected"),
    [
        ("llama", 4, "auto", (2, 3)),
        ("llama", 5, "auto", (3, 4)),
        ("llama", 1, "all", (0,)),
        ("llama", 4, "all", (0, 1, 2, 3)),
        ("roberta", 3, "auto", (0, 1, 2)),
        ("roberta", 3, "upper_half", (2,)),
    ],
)
@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5)])
def test_only_the_chosen_layers_drop(
    kind: str, num_layers: int, layers: str, expected: tuple[int, ...], rates: tuple[float, float]
) -> None:
    model = MODELS[kind](num_layers=num_layers).train()  # type: ignore[operator]
    config = HiddenKeyConfig(key_rate=rates[0], hidden_rate=rates[1], layers=layers)  # type: ignore[arg-type]
    hidden_key = attach_hidden_key(model, config)
    assert hidden_key.layers == expected
    stack = model.model.layers if kind == "llama" else model.roberta.encoder.layer
    drops = []
    for layer in stack:
        layer.register_forward_hook(
            lambda layer, args, kwargs, output: drops.append(not torch.equal(output, off(layer, args, kwargs))),
            with_kwargs=True,
        )

    def off(layer: nn.Module, args: Any, kwargs: Any) -> Tensor:
        with hidden_key.disabled():
            return layer.forward(*args, **kwargs)

    run(model, rows())
    assert tuple(index for index, drop in enumerate(drops) if drop) == expected


@pytest.mark.parametrize("kind", ["llama", "roberta"])
@pytest.mark.parametrize("pattern", ["element", "column", "span"])
def test_hidden_cut_is_on_the_feed_forward_output(kind: str, pattern: str) -> None:
    model = MODELS[kind]().train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(key_rate=0, hidden_rate=0.2, hidden_pattern=pattern))  # type: ignore[arg-type]
    layer = model.model.layers[-1] if kind == "llama" else model.roberta.encoder.layer[-1]
    site = layer.mlp if kind == "llama" else layer.output.dropout
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        with hidden_key.disabled():
            seen.append((module.forward(*args), output))

    site.register_forward_hook(keep)
    run(model, rows(6, 20))
    (uncut, cut), zero = seen[0], seen[0][1] == 0
    torch.testing.assert_close(cut, torch.where(zero, 0.0, uncut / 0.8))
    assert zero.double().mean().item() == pytest.approx(0.2, abs=0.1)


def test_hidden_cut_spans_follow_the_documents_of_packed_rows() -> None:
    model = llama().train()
    attach_hidden_key(model, HiddenKeyConfig(key_rate=0, hidden_rate=0.5, hidden_pattern="span"))
    seen: list[Tensor] = []
    model.model.layers[-1].mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    run(model, packed_rows((4, 6, 2)))
    dropped = (seen[0] == 0).all(-1)
    assert [part.sum(1).tolist() for part in dropped.split([4, 6, 2], dim=1)] == [[2, 2], [3, 3], [1, 1]]


@pytest.mark.parametrize("kind", ["llama", "roberta"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("pattern", ["default", "span", "element"])
def test_recomputation_replays_the_draw(kind: str, reentrant: bool, pattern: str) -> None:
    patterns = {} if pattern == "default" else {"key_pattern": pattern, "hidden_pattern": pattern}
    config = HiddenKeyConfig(key_rate=0.3, hidden_rate=0.3, **patterns)  # type: ignore[arg-type]
    inputs = packed_rows((5, 1, 6)) if kind == "llama" else padded_rows()
    found = []
    for checkpointing in (False, True):
        model = MODELS[kind]().train()
        if checkpointing:
            # transformers renamed the method on the way.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
        attach_hidden_key(model, config)
        # Two passes before one backward, as the compensation has them: draws must not be mixed up.
        torch.manual_seed(0)
        first, second = model(**inputs, use_cache=False).logits, model(**inputs, use_cache=False).logits
        assert not torch.equal(first, second)
        (first.square().sum() + bidirectional_kl(first, second)).backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


ADAPTERS = {"lora": LoRAConfig(rank=2), "monteclora": MonteCLoRAConfig(rank=2, noise_scale=0.1)}


@pytest.mark.parametrize("kind", ["llama", "roberta"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_it_combines_with_adapters_in_both_orders(kind: str, adapter: str) -> None:
    targets = ("?_proj", "down_proj") if kind == "llama" else ("query", "value", "*.output.dense")
    config = replace(ADAPTERS[adapter], targets=targets)

    def adapt(model: PreTrainedModel) -> None:
        for name, parameter in attach_adapter(model, config).named_parameters().items():
            if name.endswith("lora_B"):
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))

    def hide(model: PreTrainedModel) -> None:
        attach_hidden_key(model, HiddenKeyConfig(key_rate=0.3))

    orders: list[tuple[Callable[[PreTrainedModel], None], ...]] = [(adapt, hide), (hide, adapt), (adapt,)]
    logits, grads = [], []
    for order in orders:
        model = MODELS[kind]().train()
        for step in order:
            step(model)
        logits.append(run(model, rows()).logits)
        logits[-1].square().sum().backward()
        grads.append(gradients(model))
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    assert grads[0].keys() == grads[1].keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.parametrize("kind", ["llama", "roberta"])
def test_full_finetuning_learns_with_it(kind: str) -> None:
    model = MODELS[kind]().train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(compensation_weight=0.1))
    inputs = rows(8, 6)
    labels = torch.arange(8) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    torch.manual_seed(0)
    for _ in range(30):
        logits = model(**inputs).logits
        with hidden_key.second_pass():
            second = model(**inputs).logits
        if kind == "llama":
            logits, second = logits[:, -1], second[:, -1]
        loss = F.cross_entropy(logits, labels) + hidden_key.compensation(logits, second) / len(labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("kind", ["llama", "roberta"])
def test_other_dropout_is_off_or_kept(kind: str) -> None:
    settings = {"attention_dropout": 0.3} if kind == "llama" else {}
    model = MODELS[kind](**settings)  # type: ignore[arg-type]
    plain = model.eval()(**rows()).logits
    model.train()
    hidden_key = attach_hidden_key(model, OFF)
    torch.testing.assert_close(run(model, rows()).logits, plain)
    hidden_key.detach()
    noisy = run(model, rows()).logits
    assert not torch.allclose(noisy, plain)
    attach_hidden_key(model, replace(OFF, other_dropout="kept"))
    assert torch.equal(run(model, rows()).logits, noisy)


def test_hidden_cut_stands_in_place_of_the_dropout_that_is_kept() -> None:
    model = roberta().train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(other_dropout="kept", layers="upper_half"))
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    zero = {name for name, rate in rates.items() if rate == 0}
    assert zero == {"roberta.encoder.layer.2.output.dropout"}
    hidden_key.detach()
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1}


@pytest.mark.parametrize("kind", MODELS)
def test_detaching_restores_the_model(kind: str) -> None:
    def state(model: PreTrainedModel) -> list[Any]:
        found: list[Any] = [model.config._attn_implementation, model.config.to_dict()]
        for module in model.modules():
            hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            found.append(({name for name in vars(module)}, [len(h) for h in hooks], getattr(module, "p", None)))
        return found

    model = MODELS[kind]().train()
    before, output = state(model), run(model, rows()).logits
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(layers="all"))
    assert state(model) != before
    hidden_key.detach()
    hidden_key.detach()
    assert state(model) == before
    assert torch.equal(run(model, rows()).logits, output)
    attach_hidden_key(model, HiddenKeyConfig())


def test_the_saved_model_knows_nothing_of_it(tmp_path: Path) -> None:
    model = llama().eval()
    attach_hidden_key(model, HiddenKeyConfig())
    model.save_pretrained(tmp_path)
    texts = [path.read_text() for path in tmp_path.glob("*.json")]
    assert texts
    assert all("hidden_key" not in text for text in texts)
    assert "attn_implementation" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config._attn_implementation == "sdpa"
    assert torch.equal(again(**rows()).logits, model(**rows()).logits)
    assert set(model.state_dict()) == set(again.state_dict())


def test_models_with_different_implementations_live_side_by_side() -> None:
    models = [llama("sdpa").eval(), llama("eager").eval(), roberta("eager").eval()]
    outputs = [model(**padded_rows()).logits for model in models]
    handles = [attach_hidden_key(model, HiddenKeyConfig()) for model in models]
    assert [model.config._attn_implementation for model in models] == [
        "hidden_key_sdpa", "hidden_key_eager", "hidden_key_eager",
    ]  # fmt: skip
    for model, output in zip(models, outputs, strict=True):
        assert torch.equal(model(**padded_rows()).logits, output)
    for model, handle, name in zip(models, handles, ("sdpa", "eager", "eager"), strict=True):
        handle.detach()
        assert model.config._attn_implementation == name


def test_a_model_that_shares_the_config_object_is_served_plainly() -> None:
    model = llama().eval()
    other = LlamaForCausalLM(model.config).eval()
    expected = other(**rows()).logits
    attach_hidden_key(model, HiddenKeyConfig())
    assert torch.equal(other.train()(**rows()).logits, expected)
    with pytest.raises(
        AdapterError,
        match=r"^the model shares its config object with one that has HiddenKey; build it from a copy \(copy.deepcopy\)$",
    ):
        attach_hidden_key(other, HiddenKeyConfig())


def test_a_copied_model_drops_for_itself() -> None:
    model = llama().train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig())
    twin = copy.deepcopy(model)
    assert torch.equal(run(model, rows()).logits, run(twin, rows()).logits)
    with hidden_key.disabled():
        assert not torch.equal(run(model, rows()).logits, run(twin, rows()).logits)


def test_disabled_is_for_the_inside_of_the_with_statement() -> None:
    model = llama()
    plain = model.eval()(**rows()).logits
    hidden_key = attach_hidden_key(model.train(), HiddenKeyConfig())
    with hidden_key.disabled():
        with hidden_key.disabled():
            assert torch.equal(run(model, rows()).logits, plain)
        assert torch.equal(run(model, rows()).logits, plain)
    assert not torch.equal(run(model, rows()).logits, plain)
    with pytest.raises(KeyError), hidden_key.disabled():
        raise KeyError
    assert not torch.equal(run(model, rows()).logits, plain)


def both_passes(config: HiddenKeyConfig) -> tuple[Tensor, Tensor, Tensor, PreTrainedModel]:
    """Logits of both passes, the compensation, and the model after its backward."""
    model = roberta().train()
    hidden_key = attach_hidden_key(model, config)
    torch.manual_seed(0)
    logits = model(**rows()).logits
    with hidden_key.second_pass():
        second = model(**rows()).logits
    value = hidden_key.compensation(logits, second)
    if value.requires_grad:
        value.backward()
    return logits, second, value, model


def test_one_branch_sends_no_gradient_through_the_second_pass() -> None:
    logits, second, value, model = both_passes(HiddenKeyConfig(compensation_weight=0.5))
    assert not second.requires_grad
    torch.testing.assert_close(value, 0.5 * bidirectional_kl(logits, second))
    found = gradients(model)
    # The same with the second pass kept in the graph, and cut off by the compensation.
    reference = roberta().train()
    hidden_key = attach_hidden_key(reference, HiddenKeyConfig(compensation_weight=0.5))
    torch.manual_seed(0)
    first, later = reference(**rows()).logits, reference(**rows()).logits
    hidden_key.compensation(first, later).backward()
    torch.testing.assert_close(gradients(reference), found)
    assert later.requires_grad


def test_two_branches_are_the_sum_of_the_gradients_of_each() -> None:
    logits, second, value, model = both_passes(HiddenKeyConfig(both_branches=True))
    assert second.requires_grad
    torch.testing.assert_close(value, bidirectional_kl(logits, second))
    total = gradients(model)
    halves = []
    for branch in (0, 1):
        reference = roberta().train()
        attach_hidden_key(reference, HiddenKeyConfig())
        torch.manual_seed(0)
        passes = [reference(**rows()).logits, reference(**rows()).logits]
        passes[branch] = passes[branch].detach()
        bidirectional_kl(*passes).backward()
        halves.append(gradients(reference))
    torch.testing.assert_close(total, {name: halves[0][name] + halves[1][name] for name in total})


def test_js_compares_with_the_pass_in_evaluation() -> None:
    logits, second, value, model = both_passes(HiddenKeyConfig(compensation="js", compensation_weight=2.0))
    assert torch.equal(second, model.eval()(**rows()).logits)
    expected = F.kl_div(second.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="sum")
    torch.testing.assert_close(value, 2 * expected)
    assert value > 0


@pytest.mark.parametrize("kind", ["llama", "roberta"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_reference_of_js_is_without_any_noise(kind: str, adapter: str) -> None:
    targets = ("?_proj",) if kind == "llama" else ("query", "value")
    model = MODELS[kind]()
    trained = attach_adapter(model, replace(ADAPTERS[adapter], targets=targets, dropout=0.5))
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.3)
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(compensation="js", other_dropout="kept"))
    expected = model.eval()(**rows()).logits
    model.train()
    assert not torch.equal(run(model, rows()).logits, expected)
    with hidden_key.disabled():
        assert not torch.equal(run(model, rows()).logits, expected)
    with hidden_key.second_pass():
        second = run(model, rows()).logits
    assert torch.equal(second, expected)
    assert not second.requires_grad


def test_the_second_pass_of_js_leaves_every_mode_as_it_was() -> None:
    model = roberta().train()
    model.roberta.encoder.layer[1].eval()
    model.roberta.encoder.layer[1].attention.train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(compensation="js"))
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    with hidden_key.second_pass():
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    with pytest.raises(KeyError), hidden_key.second_pass():
        raise KeyError
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_the_second_pass_of_kl_leaves_the_mode_alone() -> None:
    model = llama().train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig())
    with hidden_key.second_pass():
        assert all(module.training for module in model.modules())


def test_kl_without_rates_is_the_divergence_of_other_noise() -> None:
    model = roberta().train()
    hidden_key = attach_hidden_key(model, replace(OFF, other_dropout="kept"))
    logits = run(model, rows(), seed=1).logits
    with hidden_key.second_pass():
        second = run(model, rows(), seed=2).logits
    assert hidden_key.compensation(logits, second) > 0


EXAMPLES = re.findall(r"::\n\n((?:        .*\n)+)", str(HiddenKey.__doc__))


@pytest.mark.parametrize(("kind", "example"), [("roberta", 0), ("llama", 1)])
def test_the_loss_of_the_docstring_is_a_mean(kind: str, example: int) -> None:
    model = MODELS[kind]().train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(compensation="js", layers="all"))
    labels = torch.tensor([2, 0])
    if kind == "llama":
        labels = rows()["input_ids"].clone()
        labels[0, :5] = labels[1, 9:] = -100
    found: list[Tensor] = []

    def call(**inputs: Tensor) -> Any:
        output = model(**inputs)
        found.append(output.logits)
        return output

    names = {
        "model": call,
        "hidden_key": hidden_key,
        "inputs": rows(),
        "labels": labels,
        "cross_entropy": F.cross_entropy,
    }
    torch.manual_seed(0)
    exec(textwrap.dedent(EXAMPLES[example]), names)
    assert len(EXAMPLES) == len(found) == 2
    if kind == "llama":
        pairs = [(row, column) for row in range(2) for column in range(11) if labels[row, column + 1] != -100]
        classes = [int(labels[row, column + 1]) for row, column in pairs]
        first, second = (torch.stack([logits[place] for place in pairs]).log_softmax(-1) for logits in found)
    else:
        classes = labels.tolist()
        first, second = (logits.log_softmax(-1) for logits in found)
    terms = [-p[label] + (p.exp() * (p - q)).sum() for p, q, label in zip(first, second, classes, strict=True)]
    torch.testing.assert_close(names["loss"], torch.stack(terms).mean())


def test_none_has_no_compensation() -> None:
    for config in (HiddenKeyConfig(compensation="none"), HiddenKeyConfig(compensation_weight=0)):
        assert both_passes(config)[2].item() == 0


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_the_compensation_is_zero_when_nothing_is_dropped(kind: str) -> None:
    logits, second, value, _ = both_passes(HiddenKeyConfig(key_rate=0, hidden_rate=0, compensation=kind))  # type: ignore[arg-type]
    assert torch.equal(logits, second)
    assert value.item() == 0


def test_two_passes_in_one_forward_have_their_own_masks() -> None:
    model = roberta().train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(both_branches=True))
    inputs = {name: torch.cat([value, value]) for name, value in rows().items()}
    logits, second = run(model, inputs).logits.chunk(2)
    assert not torch.allclose(logits, second)
    assert hidden_key.compensation(logits, second) > 0


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (
            llama,
            HiddenKeyConfig(key_rate=1.0, hidden_rate=-1.0),
            "HiddenKey cannot be attached: key_rate is 1.0; give a probability in [0, 1), 0 switches it off; hidden_rate "
            "is -1.0; give a probability in [0, 1), 0 switches it off",
        ),
        (
            lambda: nn.Sequential(OrderedDict(model=llama())),
            HiddenKeyConfig(),
            "HiddenKey needs a model of transformers (a PreTrainedModel), not Sequential; give the model inside it",
        ),
        (llama, LoRAConfig(), "HiddenKey needs a HiddenKeyConfig, not LoRAConfig; make one of the settings"),
        (llama, None, "HiddenKey needs a HiddenKeyConfig, not NoneType; make one of the settings"),
        (
            llama,
            HiddenKeyConfig(key_rate="0.1"),  # type: ignore[arg-type]
            "HiddenKey cannot be attached: key_rate is '0.1'; give a number",
        ),
        (
            lambda: llama(num_layers=1),
            HiddenKeyConfig(),
            "layers = auto leaves no layer that drops: the model has 1, and the upper half begins at index >= 1 / 2; set "
            "layers to all",
        ),
        (
            lambda: roberta(num_layers=1),
            HiddenKeyConfig(layers="upper_half"),
            "layers = upper_half leaves no layer that drops: the model has 1, and the upper half begins at index >= 1 / "
            "2; set layers to all",
        ),
    ],
)
def test_what_cannot_be_attached(model: Callable[[], Any], config: Any, message: str) -> None:
    refused = model()
    with pytest.raises(AdapterError, match=f"^{re.escape(message)}$"):
        attach_hidden_key(refused, config)
    assert not any(hasattr(module, "hidden_key") for module in refused.modules())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5)])
def test_another_attention_implementation_after_attaching_is_refused(kind: str, rates: tuple[float, float]) -> None:
    model = MODELS[kind]().train()
    hidden_key = attach_hidden_key(model, HiddenKeyConfig(key_rate=rates[0], hidden_rate=rates[1]))
    model.set_attn_implementation("eager")
    with pytest.raises(AdapterError, match=r"^the attention implementation was changed to eager while HiddenKey is"):
        model(**rows())
    with hidden_key.disabled():
        model(**rows())
    model.eval()(**rows())
    hidden_key.detach()
    assert model.config._attn_implementation == "eager"
    attach_hidden_key(model.train(), HiddenKeyConfig(key_rate=rates[0], hidden_rate=rates[1]))
    assert not torch.equal(run(model, rows(), seed=1).logits, run(model, rows(), seed=2).logits)


def test_attaching_twice_is_refused_and_changes_nothing() -> None:
    model = llama().train()
    attach_hidden_key(model, HiddenKeyConfig())
    expected = run(model, rows()).logits
    with pytest.raises(AdapterError, match=r"^the model has HiddenKey already; detach it first \(HiddenKey.detach\)$"):
        attach_hidden_key(model, HiddenKeyConfig(key_rate=0.5))
    assert torch.equal(run(model, rows()).logits, expected)
