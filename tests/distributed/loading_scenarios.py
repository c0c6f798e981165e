"""What ranks do when they load a base; called by name through tests.ranks."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.config import ModelConfig
from training.errors import ModelError
from training.model.build import base_fingerprint, build_model, gathered
from training.placements.zero3 import init_deepspeed
from training.ranks.distributed import device_of, init_distributed
from training.world import World, detect_world

READERS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def start() -> World:
    world = detect_world(os.environ)
    init_distributed(world)
    init_deepspeed(world, print)
    return world


def zero3(precision: str, hpz: int = 1) -> dict[str, Any]:
    """The least that DeepSpeed wants to hear."""
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "zero_hpz_partition_size": hpz},
    }
    return found | ({"bf16": {"enabled": True}} if precision == "bf16" else {})


def build(base: str, placement: str, precision: str, world: World, hpz: int = 1, **allowed: bool) -> Any:
    return build_model(
        ModelConfig(base=base, **allowed), placement=placement, precision=precision, ds_config=zero3(precision, hpz),
        seed=1, world=world, device=device_of(world), attention="sdpa",
    )  # fmt: skip


def reference(base: str, precision: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=READERS[precision])


def wrong_slices(model: nn.Module, whole: dict[str, Tensor], world: World) -> list[str]:
    """Partitioned parameters of which this rank does not hold exactly its slice, padded with zeros."""
    wrong = []
    for name, parameter in model.named_parameters():
        share: Any = parameter.ds_tensor  # type: ignore[attr-defined]
        value = whole[name].flatten()
        size = math.ceil(len(value) / world.size)
        expected = torch.zeros(size * world.size, dtype=value.dtype)
        expected[: len(value)] = value
        mine = expected[world.rank * size : (world.rank + 1) * size]
        if share.dtype != value.dtype or parameter.numel() or not torch.equal(share, mine):
            wrong.append(name)
    return wrong


def wrong_values(model: nn.Module, whole: dict[str, Tensor]) -> list[str]:
    """Parameters and buffers that, whole, are not those expected."""
    wrong = []
    for name, parameter in model.named_parameters():
        with gathered(parameter):
            if parameter.dtype != whole[name].dtype or not torch.equal(parameter, whole[name]):
                wrong.append(name)
    for name, buffer in model.named_buffers():
        if buffer.dtype != whole[name].dtype or not torch.equal(buffer, whole[name]):
            wrong.append(name)
    return wrong


def load(bases: dict[str, str], pickled: str, damaged: list[str]) -> dict[str, Any]:
    """Load every base in every way and compare with transformers' own loading in this process alone."""
    world = start()
    found: dict[str, Any] = {"wrong": {}, "tied": {}}
    for name, base in bases.items():
        for precision in ("fp32", "bf16"):
            theirs = reference(base, precision)
            whole = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
            for placement in ("zero3", "replicated"):
                model = build(base, placement, precision, world)
                wrong = set(whole) ^ {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
                if placement == "zero3":
                    wrong |= set(wrong_slices(model, whole, world))
                found["wrong"][f"{name} {precision} {placement}"] = sorted(wrong | set(wrong_values(model, whole)))
            found["tied"][name] = model.lm_head.weight is model.model.embed_tokens.weight
    theirs = reference(bases["untied"], "bf16")
    whole = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    model = build(pickled, "zero3", "bf16", world, allow_pickled_weights=True)
    found["wrong"]["pickled"] = wrong_slices(model, whole, world)
    return found | {
        "fingerprint": base_fingerprint(ModelConfig(base=bases["untied"]), world),
        "losses": [losses(bases["untied"], world, hpz) for hpz in ([1, world.size] if world.size > 1 else [1])],
        # At the end: DeepSpeed numbers parameters, and the ranks have now made different numbers of them.
        "refused": build_error(damaged[world.rank], world),
    }


def build_error(base: str, world: World) -> str:
    try:
        build(base, "zero3", "fp32", world)
    except ModelError as error:
        return str(error)
    return ""


def losses(base: str, world: World, hpz: int) -> list[float]:
    """Losses of three steps of SGD on a loaded base under DeepSpeed, with or without a secondary partition."""
    import deepspeed

    model = build(base, "zero3", "fp32", world, hpz)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=zero3("fp32", hpz),
        dist_init_required=False,
    )  # fmt: skip
    ids = torch.arange(40).view(2, 20)
    found = []
    for _ in range(3):
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        found.append(float(loss.detach()))
    engine.destroy()
    return found


def plain_losses(base: str) -> list[float]:
    """The same in plain PyTorch."""
    model = reference(base, "fp32")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(40).view(2, 20)
    found = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def anonymous_bytes() -> int:
    """Memory of this process that is no mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def bytes_read() -> int:
    """Bytes that this process has read from files, from the page cache or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


class Peak:
    """The most anonymous memory in use within the block."""

    def __enter__(self) -> Peak:
        gc.collect()
        self.before = self.most = anonymous_bytes()
        self._is_done = False
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._is_done:
            self.most = max(self.most, anonymous_bytes())
            time.sleep(0.002)

    def __exit__(self, *error: object) -> None:
        self._is_done = True
        self._thread.join()


def measure(small: str, base: str) -> dict[str, Any]:
    """Growth of memory and bytes read while a base loads, once everything that is needed is imported."""
    world = start()
    build(small, "zero3", "bf16", world)
    first = bytes_read()
    with Peak() as peak:
        model = build(base, "zero3", "bf16", world)
        last = bytes_read()
    elements = sum(parameter.ds_numel for parameter in model.parameters())
    return {"growth": peak.most - peak.before, "read": last - first, "elements": elements}
