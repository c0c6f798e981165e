import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical

from monteclora.adapter import Adapter
from monteclora.config import LoRAConfig, MonteCLoRAConfig
from monteclora.errors import AdapterError
from monteclora.merge import merge_adapter
from monteclora.predictive import predict
from tests.unit.monteclora.networks import TARGETS, WIDTH, Stack, adapt

CONFIG = MonteCLoRAConfig(rank=3, targets=TARGETS, noise_scale=0.3)


def evaluated(config: LoRAConfig = CONFIG) -> tuple[Stack, Adapter]:
    net = Stack()
    adapter = adapt(net, config)
    return net.eval(), adapter


def data() -> Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2))


def from_table(logits: Tensor) -> tuple[Adapter, Any]:
    """An adapter, and a forward that returns logits[k] for its draw number k."""
    _, adapter = evaluated()

    def forward() -> Tensor:
        assert adapter.controls.sample is not None
        return logits[adapter.controls.sample[1]]

    return adapter, forward


@given(draws=st.integers(1, 8), classes=st.integers(1, 9), spread=st.floats(0, 30), seed=st.integers(0, 10**6))
def test_mean_and_uncertainty_are_those_of_the_probabilities(
    draws: int, classes: int, spread: float, seed: int
) -> None:
    logits = spread * torch.randn(draws, 3, classes, generator=torch.Generator().manual_seed(seed))
    found = predict(*from_table(logits), draws)
    exact = logits.double().softmax(-1)
    mean = exact.mean(0)
    each = torch.stack([Categorical(probs=p).entropy() for p in exact])
    entropy = Categorical(probs=mean).entropy()
    torch.testing.assert_close(found.log_mean.double(), mean.log(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log_mean.exp().sum(-1), torch.ones(3))
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mutual_information.double(), entropy - each.mean(0), rtol=1e-5, atol=1e-5)
    assert (found.mutual_information >= 0).all()
    assert (found.mutual_information <= found.entropy + 1e-5).all()
    assert (found.mutual_information <= math.log(draws) + 1e-5).all()


def test_draws_that_agree_share_no_information_and_draws_that_do_not_share_all() -> None:
    sure = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    disagreed = predict(*from_table(sure), 2)
    torch.testing.assert_close(disagreed.entropy, torch.tensor(math.log(2)))
    torch.testing.assert_close(disagreed.mutual_information, torch.tensor(math.log(2)))
    agreed = predict(*from_table(torch.tensor([[0.3, 0.0], [0.3, 0.0]])), 2)
    assert agreed.entropy > 0.6
    assert agreed.mutual_information.abs() < 1e-6


def test_classes_of_probability_zero_add_nothing_and_nan_stays() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, -math.inf]])
    found = predict(*from_table(logits), 2)
    assert found.log_mean[2] == -math.inf
    torch.testing.assert_close(found.entropy, torch.tensor(math.log(2)))
    assert found.mutual_information.abs() < 1e-6
    once = predict(*from_table(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -math.inf]])), 2)
    torch.testing.assert_close(once.log_mean.exp(), torch.tensor([5 / 12, 5 / 12, 1 / 6]))
    broken = predict(*from_table(torch.tensor([[0.0, 0.0], [0.0, math.nan]])), 2)
    assert all(part.isnan().all() for part in broken)


@pytest.mark.parametrize("estimator", ["collapsed", "sampled"])
def test_it_averages_the_draws_of_the_adapter(estimator: Any) -> None:
    net, adapter = evaluated(MonteCLoRAConfig(rank=3, targets=TARGETS, noise_scale=0.3, estimator=estimator))
    state = torch.get_rng_state()
    found = predict(adapter, lambda: net(data()), 3, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    probabilities = []
    for index in range(3):
        with adapter.sampled(index, seed=7):
            probabilities.append(net(data()).softmax(-1))
    torch.testing.assert_close(found.log_mean, torch.stack(probabilities).mean(0).log())
    assert found.log_mean.shape == (2, 5, WIDTH)
    assert found.entropy.shape == found.mutual_information.shape == (2, 5)
    assert (found.mutual_information > 1e-4).all()
    assert not found.log_mean.requires_grad
    again, other = (predict(adapter, lambda: net(data()), 3, seed=seed) for seed in (7, 8))
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    assert not torch.allclose(found.log_mean, other.log_mean)
    assert adapter.controls.sample is None


def test_without_noise_it_is_the_models_own_prediction() -> None:
    net, adapter = evaluated(MonteCLoRAConfig(rank=3, targets=TARGETS, noise_scale=0.0))
    found = predict(adapter, lambda: net(data()), 4)
    torch.testing.assert_close(found.log_mean, net(data()).log_softmax(-1))
    assert found.mutual_information.max() < 1e-6


def test_half_precision_logits_are_averaged_in_fp32() -> None:
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    found, exact = predict(*from_table(logits), 3), predict(*from_table(logits.double()), 3)
    assert {part.dtype for part in found} == {torch.float32}
    assert {part.dtype for part in exact} == {torch.float64}
    torch.testing.assert_close(found.log_mean.double(), exact.log_mean, rtol=1e-6, atol=1e-6)


def test_logits_are_not_kept_from_draw_to_draw() -> None:
    _, adapter = evaluated()
    alive: list[weakref.ref[Tensor]] = []

    def forward() -> Tensor:
        assert [made for made in alive if made() is not None] == []
        logits = torch.randn(4, 6)
        alive.append(weakref.ref(logits))
        return logits

    predict(adapter, forward, 4)
    assert len(alive) == 4


@pytest.mark.parametrize("num_samples", [0, -2])
def test_less_than_one_draw_is_refused(num_samples: int) -> None:
    message = f"^num_samples is {num_samples}; the predictive distribution needs 1 or more draws$"
    with pytest.raises(AdapterError, match=message):
        predict(evaluated()[1], lambda: torch.zeros(2), num_samples)


def test_training_mode_is_refused() -> None:
    net, adapter = evaluated()
    net.layers[1].train()
    message = r"^layers\.1\.q_proj is in training mode, in which dropout would be part of the draw; call model\.eval\(\) first$"
    with pytest.raises(AdapterError, match=message):
        predict(adapter, lambda: torch.zeros(2), 2)


def test_plain_lora_is_refused() -> None:
    _, adapter = evaluated(LoRAConfig(rank=3, targets=TARGETS))
    with pytest.raises(AdapterError, match="a plain LoRA has no posterior to sample from"):
        predict(adapter, lambda: torch.zeros(2), 2)


def test_a_merged_adapter_is_refused() -> None:
    """Its draws would all be the merged model's own prediction, and the uncertainty 0."""
    net, adapter = evaluated()
    merge_adapter(net.train())
    net.eval()  # which its layers, elsewhere now, do not notice
    with pytest.raises(AdapterError, match=r"^the adapter is merged into its model"):
        predict(adapter, lambda: net(data()), 2)
