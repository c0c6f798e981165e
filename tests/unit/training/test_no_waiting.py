"""Nothing in a step makes the host wait for the device: no operation whose result, or its shape, it has to know."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline import TokenStream
from training.batches import take_step
from training.engine import Engine
from training.model.assembly import assemble
from training.recipe import load_config
from training.world import World

WORLD = World(rank=0, size=1, local_rank=0, local_size=1, master_addr="x", master_port=1, launcher="none")
WAITING = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_static", "equal", "unique_dim", "_unique2", "masked_select",
    "unique_consecutive", "bincount", "histc",
}  # fmt: skip
"""Operations at which a GPU's stream is waited for."""


class Recorder(TorchDispatchMode):
    """Remembers which operations ran."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = function._schema
        self.found[schema.name.split("::")[1]] += 1
        self.found[f"{schema.name.split('::')[1]}.{schema.overload_name}"] += 1
        if "index" in schema.name and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for argument in args if isinstance(argument, list | tuple) for index in argument
        ):  # fmt: skip
            self.found["nonzero"] += 1
        return function(*args, **(kwargs or {}))


def test_the_recorder_sees_what_waits() -> None:
    x = torch.arange(4.0)
    for action in (lambda: float(x[1]), lambda: x[x > 1], lambda: bool(x.sum() > 1), lambda: torch.nonzero(x)):
        with Recorder() as recorder:
            action()
        assert recorder.found.keys() & WAITING


@pytest.mark.parametrize(
    "overrides",
    [
        ("--adapter.kind", "none"),
        ("--adapter.kind", "none", "--optim.kind", "lionw", "--optim.lr", "1e-3"),
        ("--adapter.kind", "none", "--optim.kind", "muon"),
        ("--adapter.kind", "lora", "--adapter.dropout", "0.1", "--model.activation_checkpointing", "full"),
        ("--adapter.kind", "monteclora", "--adapter.loraplus_ratio", "4"),
        ("--adapter.kind", "lora", "--hidden_key.enabled", "true", "--hidden_key.compensation", "kl"),
        ("--adapter.kind", "lora", "--hidden_key.enabled", "true", "--hidden_key.compensation", "js"),
    ],
    ids=lambda overrides: " ".join(overrides[1::2]),
)
def test_a_step_waits_for_nothing(
    overrides: tuple[str, ...], tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(tiny_recipe, ["--train.placement", "replicated", *overrides])
    device = torch.device("cpu")
    monkeypatch.setattr("training.costs.fitting.from_rank_0", lambda compute, world: compute(), raising=False)
    for module in ("training.ranks.distributed", "training.model.build"):
        monkeypatch.setattr(f"{module}.gather", lambda value, world: [value], raising=False)
        monkeypatch.setattr(f"{module}.from_rank_0", lambda compute, world: compute(), raising=False)
        monkeypatch.setattr(f"{module}.raise_on_all_ranks", lambda problem, kind, world: None, raising=False)
    engine = Engine(assemble(config, {}, WORLD, device), config, {}, WORLD)
    stream = TokenStream(config.data, num_lanes=8, lanes=range(8), seed=1)
    batch = take_step(iter(stream), num_rows=8, micro_batch_rows=4)
    with Recorder() as recorder:
        result = engine.step(batch, 3, targets=batch.num_targets)
    assert result.is_applied
    assert "mm" in recorder.found or "addmm" in recorder.found, "the recorder sees the model"
    waits = recorder.found.keys() & WAITING
    # A seed per decoder layer and micro-batch, drawn on the host whatever the device, and a check per micro-batch that
    # the loss head makes on a CPU only.
    on_the_host = 2 * 2 if config.adapter.kind == "monteclora" else 2 if config.hidden_key.enabled else 0
    assert recorder.found["_local_scalar_dense"] == on_the_host
    waits -= {"_local_scalar_dense"}
    assert waits == set()
