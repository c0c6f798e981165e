"""Model FLOPs of a step and the peak of the device, for the fraction of the peak that a run uses (MFU). No torch.

A weight of a linear layer costs 2 FLOPs per token in a forward pass, 2 for the gradient of its input and, if it trains,
2 for its own gradient. A pair of a query and a key it sees costs 4 per channel of the heads in a forward pass, twice that
in a backward pass. Backward goes back to the first parameter that trains and no further. Norms, activations, the optimizer
and recomputation are not counted, nor is what a kernel computes and throws away, such as the other half of causal
attention: it is what the step needs, not what the hardware does.
"""

from __future__ import annotations

import re

from monteclora.config import LoRAConfig
from training.costs.shape import EMBEDDING, Shape, adapted_linears, saved_parameters

PEAK_BF16_FLOPS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12,
    "L40S": 362e12, "MI300X": 1307e12,
}  # fmt: skip
"""Dense bf16 FLOP/s by a part of the device's name; the first that matches counts (vendor data sheets; GH200 has an H200)."""


def peak_flops(name: str) -> float | None:
    """bf16 FLOP/s of the device with this name (torch.cuda.get_device_name), or None of an unknown one."""
    # Not followed by a digit: an A1000 is no A100.
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if re.search(rf"{part}(?!\d)", name)), None)


def step_flops(
    shape: Shape,
    adapter: LoRAConfig | None,
    *,
    tokens: float,
    targets: float,
    pairs: float,
    forwards: int = 1,
    backwards: int = 1,
) -> float:
    """FLOPs of forward and backward passes over some rows, of any number of steps and ranks.

    Args:
        shape: of the model.
        adapter: on it, the rest of the model being frozen; None when everything trains.
        tokens: input tokens.
        targets: of them, those with a target; the output head is computed for them only.
        pairs: of a query and a key it sees, in the attention of one layer.
        forwards: passes over each row (HiddenKey has two).
        backwards: of those passes, how many are followed by a backward pass.
    """
    ranks, trains = _trained(shape, adapter)
    forward = backward = 0.0
    # Whether anything before the layer in question trains, so that the gradient of its input is needed.
    flows = EMBEDDING in trains

    def linear(name: str, rows: float) -> bool:
        nonlocal forward, backward
        (fan_in, fan_out), rank, is_trained = linears[name], ranks.get(name, 0), f"{name}.weight" in trains
        weights, low_rank = rows * fan_in * fan_out, rows * rank * (fan_in + fan_out)
        forward += 2 * (weights + low_rank)
        # Of A and B themselves, and of what is between them; then that of the input, through both.
        backward += 2 * weights * is_trained + 2 * (low_rank + rows * rank * fan_out)
        backward += 2 * (weights + rows * rank * fan_in) * flows
        return is_trained or rank > 0

    linears = shape.linears()
    for k in range(shape.layers):
        layer = f"model.layers.{k}"
        flows |= f"{layer}.input_layernorm.weight" in trains
        flows = any([linear(f"{layer}.self_attn.{name}_proj", tokens) for name in "qkv"]) or flows
        products = 4 * shape.heads * shape.head_dim * pairs
        forward += products
        backward += 2 * products * flows
        flows = linear(f"{layer}.self_attn.o_proj", tokens) or flows
        flows |= f"{layer}.post_attention_layernorm.weight" in trains
        flows = any([linear(f"{layer}.mlp.{name}_proj", tokens) for name in ("gate", "up")]) or flows
        flows = linear(f"{layer}.mlp.down_proj", tokens) or flows
    flows |= "model.norm.weight" in trains
    linear("lm_head", targets)
    return forwards * forward + backwards * backward


def _trained(shape: Shape, adapter: LoRAConfig | None) -> tuple[dict[str, int], set[str]]:
    """Ranks of the adapted linear layers, and the names of the parameters of the model that train in full."""
    if adapter is None:
        ranks, trains = {}, set(shape.parameters())
    else:
        ranks = {name: adapter.rank_of(name) for name in adapted_linears(shape, adapter)}
        trains = set(saved_parameters(shape, adapter))
    if shape.is_tied and EMBEDDING in trains:
        trains.add("lm_head.weight")
    return ranks, trains
