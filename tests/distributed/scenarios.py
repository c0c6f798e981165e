"""What ranks do in tests; called by name through tests.ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline import TokenStream
from data_pipeline.stream.token_stream import Row
from monteclora import Adapter, HiddenKey, attach_adapter, attach_hidden_key
from training import placements
from training.batches import HASH_SIZE, chain_hash, row_hash
from training.checkpoint.image import shard_name, streamed
from training.checkpoint.retention import retention_of
from training.checkpoint.storage import write_file
from training.config import Config
from training.ds_json import read_ds_config
from training.engine import Engine
from training.loop import take_batch
from training.model.assembly import assemble
from training.model.loss import IGNORE, summed_cross_entropy
from training.origin import Origin
from training.prefetch import StepBatches
from training.progress import Progress
from training.randomness import micro_batch_seed
from training.ranks.distributed import device_of, init_distributed
from training.recipe import load_config
from training.record.run_record import RunRecord
from training.saving import Saver
from training.schedule import lr_factor
from training.watch.display import Display
from training.world import World, detect_world

CPU_JSON = Path(__file__).resolve().parents[2] / "ds_configs" / "zero3_cpu.json"


class Run:
    """A configured engine and stream, as training/main.py makes them."""

    def __init__(
        self,
        recipe: str,
        overrides: list[str],
        world: World,
        threshold: int | None = None,
        *,
        is_reentrant: bool = False,
    ) -> None:
        self.config = load_config(Path(recipe), overrides, world_size=world.size)
        ds_json, problems = read_ds_config(CPU_JSON)
        assert not problems
        if threshold is not None:
            ds_json["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
        ds_config = placements.prepare(self.config, ds_json, world)
        assembly = assemble(self.config, ds_config, world, device_of(world))
        if is_reentrant:
            enable_reentrant_checkpointing(assembly.model)
        self.engine = Engine(assembly, self.config, ds_config, world)
        num_lanes, sharing = self.config.train.global_batch_rows, self.config.train.sequence_parallel
        stream = TokenStream(
            self.config.data, num_lanes=num_lanes, lanes=world.lanes(num_lanes, sharing), seed=self.config.run.seed
        )
        self.batches = StepBatches(stream, self.config, rank=world.rank)
        self.hash = ""

    def train(self, first: int, last: int) -> list[list[Any]]:
        """Steps first .. last-1; [loss, gradient norm, penalty, data hash, compensation] of each."""
        results = []
        for step in range(first, last):
            result = self.step(step)
            results.append([result.loss, result.grad_norm, result.penalty, self.hash, result.compensation])
        return results

    def step(self, step: int) -> Any:
        batch, shared = take_batch(self.batches, self.engine, wants_profile=False)
        result = self.engine.step(batch, step, targets=shared.targets)
        self.hash = chain_hash(self.hash, shared.row_hash)
        return result

    def saver(self) -> Saver:
        self.config.run.dir.mkdir(parents=True, exist_ok=True)
        record = RunRecord(self.config.run.dir, self.engine.world)
        display = Display(label="test", steps=1, is_shown=False)
        return Saver(self.engine, self.batches, self.config, record, display, retention_of(self.config, None))

    def resume(self, progress: Progress) -> bool:
        """Go on from the run's newest checkpoint."""
        return self.saver().resume(progress, Origin(root=self.config.run.dir / "checkpoints"))


def attach(model: Any, config: Config) -> tuple[Adapter | None, HiddenKey | None]:
    adapter_config, hidden_key_config = config.adapter.build(), config.hidden_key.build()
    adapter = attach_adapter(model, adapter_config, seed=config.run.seed) if adapter_config else None
    return adapter, attach_hidden_key(model, hidden_key_config) if hidden_key_config else None


def enable_reentrant_checkpointing(model: Any) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": True})
    # The input of the first recomputed block has no gradient of its own when the embedding is frozen.
    model.enable_input_require_grads()


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
        if (
            value is not None
            and name not in trained
            and not torch.equal(value.float(), base[name].to(value.dtype).float())
        ):
            changed.append(name)
    return changed


def states(recipe: str, cases: dict[str, dict[str, Any]], steps: int, folder: str) -> dict[str, Any]:
    """Train several configurations; every rank writes its slices of what trained, with AdamW's moments, to `folder`."""
    world = start()
    found: dict[str, Any] = {}
    for name, case in cases.items():
        run = Run(recipe, case["overrides"], world, case["threshold"], is_reentrant=case.get("is_reentrant", False))
        found[name] = {
            "curve": run.train(0, steps),
            "shapes": run.engine.shapes(),
            "steps": run.engine.optimizer_steps(),
            "draw": last_draw(run.engine.adapter),
        }
        shard = Path(folder) / name
        shard.mkdir(exist_ok=True)
        write_state(shard, run.engine)
    return found


def state_of(engine: Engine) -> dict[str, Tensor]:
    """A copy of this rank's slices."""
    return {name: view.detach().to("cpu", copy=True) for name, view in engine.local_views()}


def write_state(folder: Path, engine: Engine) -> None:
    """Write this rank's slices as a checkpoint has them."""
    sizes = {name: view.numel() for name, view in engine.local_views()}
    world = engine.world
    write_file(folder / shard_name(world.rank, world.size), streamed(sizes, engine.local_views()), read_back=False)


def last_draw(adapter: Adapter | None) -> list[float]:
    """Mixture weights of the latest forward in the first block."""
    posteriors = [] if adapter is None else list(adapter.posteriors.values())
    draw = posteriors[0].last_draw if posteriors else None
    return [] if draw is None else draw.pi.flatten().tolist()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a step as tensors (rows, seq_len)."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    first_lane: int

    @staticmethod
    def of(rows: list[Row]) -> Rows:
        tensors = {
            k: torch.tensor([getattr(row, k).tolist() for row in rows]) for k in ("input_ids", "labels", "position_ids")
        }
        return Rows(first_lane=rows[0].lane, **tensors)


class Plain:
    """The same training in ordinary PyTorch on one process: no DeepSpeed, no engine, no adapter's own groups."""

    def __init__(self, recipe: str, overrides: list[str]) -> None:
        from transformers import AutoModelForCausalLM

        self.config = config = load_config(Path(recipe), overrides)
        self.model: Any = AutoModelForCausalLM.from_pretrained(config.model.base, dtype=torch.float32).train()
        self.adapter, self.hidden_key = attach(self.model, config)
        self.parameters: dict[str, nn.Parameter] = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        # One group per parameter, so that learning rate and decay are said here, by name.
        self.optimizer = torch.optim.AdamW(
            [{"params": [p], "name": name} for name, p in self.parameters.items()],
            betas=(config.optim.beta1, config.optim.beta2), eps=config.optim.eps,
        )  # fmt: skip
        num_lanes = config.train.global_batch_rows
        self.rows = iter(TokenStream(config.data, num_lanes=num_lanes, lanes=range(num_lanes), seed=config.run.seed))
        self.hash = ""

    def train(self, steps: int) -> list[list[Any]]:
        """The columns of `Run.train`."""
        return [self.step(step) for step in range(steps)]

    def step(self, step: int) -> list[Any]:
        config, is_bayesian = self.config, self.config.adapter.kind == "monteclora"
        is_cooperative = is_bayesian and step >= config.adapter.start_step
        is_posthoc = is_cooperative and config.adapter.posthoc
        rows, micro_rows = config.train.global_batch_rows, config.train.micro_batch_rows
        taken = [next(self.rows) for _ in range(rows)]
        batch = [Rows.of(taken[i : i + micro_rows]) for i in range(0, rows, micro_rows)]
        targets = sum(int((micro.labels != IGNORE).sum()) for micro in batch)
        if self.adapter is not None:
            self.adapter.begin_step(step)
            self.adapter.set_penalty_weight(1 / len(batch))
        loss, penalty, compensation = 0.0, 0.0, 0.0
        for micro in batch:
            ours, divergence = self.losses(micro, step)
            loss, compensation = loss + ours.item() / targets, compensation + divergence.item() / targets
            if self.adapter is not None:
                penalty += float(self.adapter.penalty()) / len(batch)
            ((ours + divergence) / targets).backward()
        variational = (".log_std", ".log_concentration")
        for name, parameter in self.parameters.items():
            if is_posthoc and not name.endswith(variational):
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), config.train.gradient_clipping or float("inf"))
        for group in self.optimizer.param_groups:
            name, (parameter,) = group["name"], group["params"]
            group["lr"] = config.optim.lr * lr_factor(step, config.train.steps, config.optim)
            group["lr"] *= config.adapter.loraplus_ratio if name.endswith(".lora_B") else 1
            group["lr"] *= config.adapter.coop_lr_ratio if is_cooperative else 1
            group["lr"] *= 0 if is_posthoc and not name.endswith(variational) else 1
            has_decay = parameter.ndim == 2 and not name.endswith(variational)
            group["weight_decay"] = config.optim.weight_decay if has_decay else 0.0
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.hash = chain_hash(self.hash, sum(row_hash(row) for row in taken) % HASH_SIZE)
        has_divergence = self.hidden_key is not None and config.hidden_key.compensation != "none"
        return [
            loss,
            float(norm),
            penalty if is_cooperative else None,
            self.hash,
            compensation if has_divergence else None,
        ]

    def losses(self, micro: Rows, step: int) -> tuple[Tensor, Tensor]:
        """Sums of cross-entropy and compensation over the targets of a micro-batch."""
        settings, is_target = self.config.hidden_key, micro.labels != IGNORE
        if self.hidden_key is None or settings.compensation == "none":
            return summed_cross_entropy(self.logits(micro, step), micro.labels), torch.zeros(())
        if settings.both_branches:
            doubled = Rows(
                input_ids=torch.cat([micro.input_ids] * 2), labels=torch.cat([micro.labels] * 2),
                position_ids=torch.cat([micro.position_ids] * 2), first_lane=micro.first_lane,
            )  # fmt: skip
            logits = self.logits(doubled, step)
            loss = summed_cross_entropy(logits, doubled.labels) / 2
            rows = len(micro.labels)
            logits, second = logits[:rows][is_target], logits[rows:][is_target]
        else:
            with torch.no_grad():
                self.model.train(settings.compensation == "kl")
                second = self.logits(micro, step, branch=1)[is_target]
                self.model.train()
            whole = self.logits(micro, step)
            loss, logits = summed_cross_entropy(whole, micro.labels), whole[is_target]
        p, q = logits.log_softmax(-1), second.log_softmax(-1)
        divergence = F.kl_div(q, p, log_target=True, reduction="sum")
        if settings.compensation == "kl":
            divergence = (divergence + F.kl_div(p, q, log_target=True, reduction="sum")) / 2
        return loss, settings.compensation_weight * divergence

    def logits(self, micro: Rows, step: int, branch: int = 0) -> Tensor:
        torch.manual_seed(micro_batch_seed(self.config.run.seed, step, micro.first_lane, branch))
        logits: Tensor = self.model(input_ids=micro.input_ids, position_ids=micro.position_ids, use_cache=False).logits
        return logits

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """What `Engine.local_views` has, whole: every trained parameter and its moments."""
        for name, parameter in self.parameters.items():
            yield name, parameter.detach()
            moments = self.optimizer.state.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq"):
                yield f"{name}/{key}", moments.get(key, torch.zeros_like(parameter))


def plain_curve(recipe: str, overrides: list[str], steps: int) -> list[list[Any]]:
    """Training curve of `Plain`."""
    return Plain(recipe, overrides).train(steps)


def save_then_continue(recipe: str, overrides: list[str], first: int, last: int) -> dict[str, Any]:
    """Train to `first`, save, train on to `last` without interruption."""
    from training.progress import Progress

    run = Run(recipe, overrides, start())
    before = run.train(0, first)
    progress = Progress(step=first, data_hash=run.hash)
    run.saver().settle(progress)
    return {"before": before, "after": run.train(first, last)}


def resume_and_continue(recipe: str, overrides: list[str], last: int) -> dict[str, Any]:
    """Load the newest checkpoint into a new engine and train on."""
    from training.progress import Progress

    run = Run(recipe, overrides, start())
    progress = Progress()
    assert run.resume(progress)
    run.hash = progress.data_hash
    return {"step": progress.step, "after": run.train(progress.step, last)}


if __name__ == "__main__":
    sys.exit("called by tests.ranks")
