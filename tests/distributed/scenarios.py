"""What ranks do in tests; called by name through tests.ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from data_pipeline import TokenStream
from monteclora import attach_adapter
from training.batches import chain_hash, take_step
from training.config import Config
from training.display import Display
from training.ds_json import read_ds_config
from training.engine import Engine, complete_ds_config, init_distributed, parameter_groups
from training.loss import IGNORE, summed_cross_entropy
from training.model import build_model
from training.randomness import micro_batch_seed
from training.recipe import load_config
from training.record import RunRecord
from training.saving import Saver
from training.schedule import lr_factor
from training.world import World, detect_world

CPU_JSON = Path(__file__).resolve().parents[2] / "ds_configs" / "zero3_cpu.json"


class Run:
    """A configured engine and stream, as training/main.py makes them."""

    def __init__(self, recipe: str, overrides: list[str], world: World, threshold: int | None = None) -> None:
        self.config = load_config(Path(recipe), overrides, world_size=world.size)
        ds_json, problems = read_ds_config(CPU_JSON)
        assert not problems
        if threshold is not None:
            ds_json["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
        ds_config = complete_ds_config(ds_json, self.config, world)
        seed, num_lanes = self.config.run.seed, self.config.train.global_batch_rows
        model = build_model(self.config.model, precision=self.config.train.precision, ds_config=ds_config, seed=seed)
        adapter_config = self.config.adapter.build()
        adapter = attach_adapter(model, adapter_config, seed=seed) if adapter_config else None
        self.engine = Engine(model, adapter, self.config, ds_config, world)
        self.stream = TokenStream(self.config.data, num_lanes=num_lanes, lanes=world.lanes(num_lanes), seed=seed)
        self.rows = iter(self.stream)
        self.hash = ""

    def train(self, first: int, last: int) -> list[list[Any]]:
        """Steps first .. last-1; [loss, gradient norm, penalty, data hash] of each."""
        results = []
        for step in range(first, last):
            result = self.step(step)
            results.append([result.loss, result.grad_norm, result.penalty, self.hash])
        return results

    def step(self, step: int) -> Any:
        rows = self.config.train.global_batch_rows // self.engine.world.size
        batch, hash_sum = take_step(self.rows, num_rows=rows, micro_batch_rows=self.config.train.micro_batch_rows)
        result = self.engine.step(batch, step)
        self.hash = chain_hash(self.hash, int(self.engine.sum_over_ranks([hash_sum])[0]))
        return result

    def saver(self) -> Saver:
        record = RunRecord(self.config.run.dir, self.engine.world)
        return Saver(self.engine, self.stream, self.config, record, Display(label="test", steps=1, is_shown=False))


def start() -> World:
    world = detect_world(os.environ)
    init_distributed(world)
    return world


def curves(
    recipe: str, cases: dict[str, list[str]], steps: int, thresholds: dict[str, int] | None = None
) -> dict[str, Any]:
    """Training curves of several configurations, one after the other on the same ranks."""
    world = start()
    found: dict[str, Any] = {}
    for name, overrides in cases.items():
        run = Run(recipe, overrides, world, (thresholds or {}).get(name))
        found[name] = {
            "curve": run.train(0, steps),
            "trainable": {key: list(shape) for key, shape in run.engine.shapes().items()},
            "frozen_changed": frozen_changed(run),
        }
    return found


def frozen_changed(run: Run) -> list[str]:
    """Frozen parameters whose values differ from the base's files (rank 0)."""
    from safetensors.torch import load_file

    if run.config.model.base is None:
        return []
    base = load_file(Path(run.config.model.base) / "model.safetensors")
    trained = set(run.engine.shapes())
    changed = []
    for name, value in run.engine.full_parameters():
        origin = name.replace(".base.", ".")
        if (
            value is not None
            and name not in trained
            and not torch.equal(value.float(), base[origin].to(value.dtype).float())
        ):
            changed.append(name)
    return changed


def plain_curve(recipe: str, overrides: list[str], steps: int) -> list[list[Any]]:
    """The same training in ordinary PyTorch on one process: no DeepSpeed, no engine."""
    from transformers import AutoModelForCausalLM

    config: Config = load_config(Path(recipe), overrides)
    seed, num_lanes, micro_rows = config.run.seed, config.train.global_batch_rows, config.train.micro_batch_rows
    model = AutoModelForCausalLM.from_pretrained(config.model.base, dtype=torch.float32).train()
    adapter_config = config.adapter.build()
    adapter = attach_adapter(model, adapter_config, seed=seed) if adapter_config else None
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameter_groups(trainable, config), betas=(config.optim.beta1, config.optim.beta2), eps=config.optim.eps
    )
    stream = iter(TokenStream(config.data, num_lanes=num_lanes, lanes=range(num_lanes), seed=seed))
    curve, chain = [], ""
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr * lr_factor(step, config.train.steps, config.optim)
        batch, hash_sum = take_step(stream, num_rows=num_lanes, micro_batch_rows=micro_rows)
        targets = sum(int((micro.labels != IGNORE).sum()) for micro in batch)
        total, penalty = 0.0, 0.0
        for micro in batch:
            torch.manual_seed(micro_batch_seed(seed, step, micro.first_lane))
            if adapter is not None:
                adapter.set_penalty_weight(1 / len(batch))
            logits = model(input_ids=micro.input_ids, position_ids=micro.position_ids, use_cache=False).logits
            loss = summed_cross_entropy(logits, micro.labels) / targets
            total += loss.item()
            if config.adapter.kind == "monteclora":
                assert adapter is not None
                penalty += float(adapter.penalty()) / len(batch)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable.values(), config.train.gradient_clipping or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        chain = chain_hash(chain, hash_sum)
        curve.append([total, float(norm), penalty if config.adapter.kind == "monteclora" else None, chain])
    return curve


def save_then_continue(recipe: str, overrides: list[str], first: int, last: int) -> dict[str, Any]:
    """Train to `first`, save, train on to `last` without interruption."""
    from training.progress import Progress

    run = Run(recipe, overrides, start())
    before = run.train(0, first)
    progress = Progress(step=first, data_hash=run.hash)
    run.saver().save(progress)
    return {"before": before, "after": run.train(first, last)}


def resume_and_continue(recipe: str, overrides: list[str], last: int) -> dict[str, Any]:
    """Load the newest checkpoint into a new engine and train on."""
    from training.progress import Progress

    run = Run(recipe, overrides, start())
    progress = Progress()
    assert run.saver().resume(progress)
    run.hash = progress.data_hash
    return {"step": progress.step, "after": run.train(progress.step, last)}


if __name__ == "__main__":
    sys.exit("called by tests.ranks")
