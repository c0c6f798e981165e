"""The predictive distribution of a model with a posterior: its mean over draws, and how much the draws disagree.

For draws k = 1..K of the adapter's weights, with probabilities p_k over the classes::

    mean p = (1/K) sum_k p_k                        the predictive mean, which averages probabilities, not logits
    H(mean p) = E_k H(p_k) + I                      total = expected entropy + mutual information

The mutual information I between the class and the weights is what knowing the weights would tell: it is 0 where all
draws agree, however unsure each of them is (BALD, arXiv 1112.5745).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from monteclora.adapter import Adapter
from monteclora.distributions import wide
from monteclora.errors import AdapterError


class Predictive(NamedTuple):
    """What several draws from the posterior predict, in fp32 (or fp64)."""

    log_mean: Tensor
    """Logarithm of the mean probability of each class [..., classes]; its exponentials sum to 1."""
    entropy: Tensor
    """Entropy of the mean probabilities in nats [...]: the total uncertainty."""
    mutual_information: Tensor
    """Mutual information of class and weights in nats [...], between 0 and `entropy`: the part of the uncertainty that
    is the weights'."""


def predict(adapter: Adapter, forward: Callable[[], Tensor], num_samples: int, seed: int = 0) -> Predictive:
    """Run a model with `num_samples` draws of its adapter, without gradients, and average what they predict.

    Draw number i of a seed is that of `Adapter.sampled(i, seed)`: the same for every batch and on every rank. One
    [..., classes] and two [...] tensors are kept from draw to draw, whatever their number.

    Args:
        adapter: a MonteCLoRA adapter of a model in evaluation mode.
        forward: runs the model and returns its logits [..., classes].
        num_samples: number of draws K.
        seed: of the draws.

    Raises:
        AdapterError: less than one draw, a plain LoRA, or adapted layers in training mode.
    """
    if num_samples < 1:
        raise AdapterError(f"num_samples is {num_samples}; the predictive distribution needs 1 or more draws")
    adapter.check_in_place()
    if training := [name for name, module in adapter.layers.items() if module.training]:
        raise AdapterError(
            f"{training[0]} is in training mode, in which dropout would be part of the draw; call model.eval() first"
        )

    def draw(index: int) -> Tensor:
        with adapter.sampled(index, seed):
            return F.log_softmax(wide(forward()), dim=-1)

    with torch.no_grad():
        log_sum = draw(0)
        entropy_sum = _entropy(log_sum)
        for index in range(1, num_samples):
            log_probabilities = draw(index)
            entropy_sum += _entropy(log_probabilities)
            torch.logaddexp(log_sum, log_probabilities, out=log_sum)
            del log_probabilities
        log_mean = log_sum - math.log(num_samples)
        entropy = _entropy(log_mean)
        return Predictive(log_mean, entropy, (entropy - entropy_sum / num_samples).clamp_min(0))


def _entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy in nats over the last axis; a class of probability 0 adds nothing."""
    finite = log_probabilities.clamp_min(torch.finfo(log_probabilities.dtype).min)
    return -(log_probabilities.exp() * finite).sum(-1)
