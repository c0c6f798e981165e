"""What MonteCLoRA costs over LoRA: the step time of one adapted layer, ours and PEFT's, on one CPU thread.

A step is forward, loss with the variational penalty where there is one, backward and AdamW. Four layers take turns in
one process: our LoRA and MonteCLoRA, PEFT's LoRA and MonteCLoRA. All have the same shape, rank, number of Gaussians,
fp32 weights and input. A ratio is taken within a repetition, in which each layer takes a few steps; the median over
the repetitions is the claim, the extremes are its spread.

    python benchmarks/monteclora_step.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora.monteclora import MontecloraSampler
from torch import Tensor, nn

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from monteclora import LoRAConfig, MonteCLoRAConfig, attach_adapter  # noqa: E402
from monteclora.monteclora import MonteCLoRALinear  # noqa: E402

RANK, NUM_SAMPLES, NOISE_SCALE = 32, 4, 2.5e-5
PEER = f"peft {peft.__version__}"


class Net(nn.Module):
    """One linear layer, by a name that both libraries can be pointed at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [tokens, width] to [tokens, width]."""
        result: Tensor = self.proj(x)
        return result


def ours(width: int, x: Tensor, config: LoRAConfig) -> Callable[[], None]:
    """Build our layer and return its training step."""
    net = Net(width)
    adapter = attach_adapter(net, config)
    adapter.set_penalty_weight(1.0)
    return step(net, adapter.parameters().values(), x, lambda: 0.0)


def theirs(width: int, x: Tensor, monteclora: bool) -> Callable[[], None]:
    """Build PEFT's layer, with its default noise buffer, and return its training step."""
    own = peft.MontecloraConfig(
        num_samples=NUM_SAMPLES, sample_scaler=NOISE_SCALE, dirichlet_prior=1.0, kl_loss_weight=1e-5, use_entropy=True
    )
    config = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=["proj"], monteclora_config=own if monteclora else None
    )
    net = peft.get_peft_model(Net(width), config)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return step(net, trained, x, net.base_model._get_monteclora_loss if monteclora else lambda: 0.0)


def step(
    net: nn.Module, trained: Iterable[nn.Parameter], x: Tensor, penalty: Callable[[], Tensor | float]
) -> Callable[[], None]:
    """Return a function that makes one training step of `net` on x [tokens, width]."""
    net.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def run() -> None:
        optimizer.zero_grad()
        (net(x).square().mean() + penalty()).backward()
        optimizer.step()
        x.grad = None

    return run


def measure(width: int, tokens: int, repetitions: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of each layer, by name, one value per repetition."""
    # The input asks for its gradient, as it does everywhere but in a model's first layer.
    x = torch.randn(tokens, width, requires_grad=True)
    common: dict[str, Any] = {"rank": RANK, "alpha": 2 * RANK, "targets": ("proj",)}
    runs = {
        "ours_lora": ours(width, x, LoRAConfig(**common)),
        "ours_monteclora": ours(width, x, MonteCLoRAConfig(num_samples=NUM_SAMPLES, noise_scale=NOISE_SCALE, **common)),
        "peft_lora": theirs(width, x, monteclora=False),
        "peft_monteclora": theirs(width, x, monteclora=True),
    }
    for run in runs.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for repetition in range(repetitions):
        # Every layer comes equally often first, second, third and last.
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            for _ in range(steps):
                runs[name]()
            seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def claim(name: str, over: list[float], under: list[float], goal: float) -> dict[str, Any]:
    """Compare two layers' seconds, repetition by repetition."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "claim": name,
        "ratio": statistics.median(ratios),
        "goal": f"<={goal:g}",
        "min": min(ratios),
        "max": max(ratios),
        "quartiles": [quartiles[0], quartiles[2]],
        "n": len(ratios),
        "peer": PEER,
    }


def moment_ratios(draws: int) -> dict[str, float]:
    """Second and fourth moments of our noise over those of PEFT's, at the same parameters: both are 1 in law."""
    torch.manual_seed(0)
    sampler = MontecloraSampler(64, 8, NUM_SAMPLES, sample_scaler=1.0, buffer_size=draws, device="cpu")
    layer = MonteCLoRALinear(nn.Linear(64, 64), MonteCLoRAConfig(rank=8, num_samples=NUM_SAMPLES, noise_scale=1.0))
    moments: dict[str, list[float]] = {"ours": [0.0, 0.0], "peft": [0.0, 0.0]}
    with torch.no_grad():
        layer.lora_A.zero_()
        layer.log_std.copy_(sampler.std_prior)
        layer.log_concentration.copy_(sampler.expert_weights_prior)
        for _ in range(draws):
            noise, pi = sampler()
            for name, value in (("ours", layer.sample_a()), ("peft", torch.einsum("n,nij->ij", pi, noise))):
                moments[name][0] += value.square().mean().item()
                moments[name][1] += value.pow(4).mean().item()
    second, fourth = (a / b for a, b in zip(moments["ours"], moments["peft"], strict=True))
    return {"second": second, "fourth": fourth, "draws": draws}


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the small shape, in under a minute")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    shapes = [(1024, 512, 100, 2)] if arguments.quick else [(1024, 512, 200, 2), (4096, 512, 40, 1)]
    moments = moment_ratios(500 if arguments.quick else 2000)
    print(f"noise, ours / {PEER}: second moment {moments['second']:.3f}, fourth moment {moments['fourth']:.3f}")
    claims: list[dict[str, Any]] = []
    seconds: dict[str, dict[str, float]] = {}
    for width, tokens, repetitions, steps in shapes:
        shape = f"d{width}_t{tokens}"
        measured = measure(width, tokens, repetitions, steps)
        seconds[shape] = {name: statistics.median(values) for name, values in measured.items()}
        print(shape, *(f"{name} {1e3 * value:.2f} ms" for name, value in seconds[shape].items()), sep="  ")
        peer = claim("peer", measured["peft_monteclora"], measured["peft_lora"], 1)
        print(f"{shape}  {PEER} MonteCLoRA / LoRA {peer['ratio']:.3f} ({peer['min']:.3f}..{peer['max']:.3f})")
        claims += [
            claim(f"monteclora_step_{shape}", measured["ours_monteclora"], measured["ours_lora"], 1.05)
            | {"peer_ratio": peer["ratio"]},
            claim(f"monteclora_over_peer_{shape}", measured["ours_monteclora"], measured["peft_monteclora"], 1),
        ]
    for line in claims:
        print(
            f"claim={line['claim']} ratio={line['ratio']:.3f} goal={line['goal']} "
            f"spread={line['min']:.3f}..{line['max']:.3f} peer={line['peer']}"
        )
    if arguments.json:
        settings = {"rank": RANK, "num_samples": NUM_SAMPLES, "torch": torch.__version__, "threads": 1}
        write_json(
            arguments.json,
            {"schema": 1, "settings": settings, "moments": moments, "seconds": seconds, "claims": claims},
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write under a temporary name, make sure it is on disk, rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
