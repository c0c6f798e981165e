"""The one Config: what a recipe may say, with units, defaults and the rules every value must keep.

Nothing here imports torch, so a login node can validate a recipe. Each package owns the configuration of its own
parts; this module owns training's and composes the whole.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipeline.config import TOKENIZER_FILES, DataConfig
from data_pipeline.files import looked_at
from evals.config import EvalConfig
from monteclora.config import LoRAConfig, MonteCLoRAConfig
from monteclora.hidden_key.config import HiddenKeyConfig
from monteclora.peft_config import more_than_lora
from training.costs.shape import Shape, adapted_linears, adapter_problems, from_hugging_face, trained_names, unmatched
from training.duration import parse_duration
from training.files import read_json
from training.length import is_length_known, parse_length, resolve, steps_in
from training.model import base_files

Kind = Literal["none", "lora", "monteclora"]

ADAPTER_JSON = "adapter_config.json"
"""PEFT's description of a saved adapter."""

LENGTHS = {
    "train.steps", "train.tokens", "train.epochs", "train.global_batch_rows", "data.seq_len",
    "optim.warmup_steps", "optim.warmup", "optim.cooldown_steps", "optim.cooldown", "eval.every", "eval.at",
}  # fmt: skip
"""Settings that say how many steps a run and its parts have."""

Problem = tuple[str, str]
"""A dotted field name and what is wrong with its value."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run lives and which random numbers it uses."""

    dir: Path = Path("runs/{adapter.kind}")
    """Run directory on shared storage. Settings may be named in braces: runs/{adapter.kind}-lr{optim.lr}-seed{run.seed}."""

    seed: int = 17
    """Seed of everything random: initial adapter weights, data order, dropout and adapter noise."""

    branch_from: Path | None = None
    """Checkpoint (or run directory, for its newest one) whose weights, optimizer state and place in the data a new run begins
    with, under a schedule of its own: a cooldown, say. Names in braces are as in dir. Steps, tokens and epochs count from
    the beginning of the run it branches from. Free are the length of the run, [eval], [optim] but for kind and the choice of
    parameters, and what a run may always be continued with; all else is as it was there."""

    def problems(self) -> Iterator[Problem]:
        """Yield (field, message) for every value out of range."""
        if not 0 <= self.seed < 2**32:
            yield "seed", "must be between 0 and 4294967295"


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig:
    """Shape of a LLaMA with random weights; used only while model.base is not set."""

    hidden_size: int = 192
    """Width of the residual stream."""

    intermediate_size: int = 512
    """Width of the feed-forward layers."""

    num_layers: int = 4
    """Number of decoder layers."""

    num_heads: int = 6
    """Attention heads per layer; divides hidden_size into even parts."""

    num_kv_heads: int = 6
    """Key/value heads per layer (grouped-query attention when smaller than num_heads)."""

    vocab_size: int = 2048
    """Number of token ids the model knows; at least the tokenizer's vocabulary."""

    max_positions: int = 4096
    """Longest sequence the model is declared for."""

    tie_embeddings: bool = True
    """Share the input embedding with the output head."""

    def shape(self) -> Shape:
        """The sizes of the model."""
        return Shape(
            hidden=self.hidden_size, intermediate=self.intermediate_size, layers=self.num_layers, heads=self.num_heads,
            kv_heads=self.num_kv_heads, head_dim=self.hidden_size // self.num_heads, vocab=self.vocab_size,
            is_tied=self.tie_embeddings,
        )  # fmt: skip

    def problems(self) -> Iterator[Problem]:
        """Yield (field, message) for every value out of range."""
        for shape in dataclasses.fields(self):
            value = getattr(self, shape.name)
            if shape.name != "tie_embeddings" and value < 1:
                yield shape.name, "must be at least 1"
        if self.num_heads >= 1 and (self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2):
            yield "num_heads", f"must divide hidden_size ({self.hidden_size}) into heads of an even width"
        if self.num_kv_heads >= 1 and self.num_heads % self.num_kv_heads:
            yield "num_kv_heads", f"must divide num_heads ({self.num_heads})"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to train."""

    base: str | None = field(default=None, metadata={"path_or_name": True})
    """Pretrained LLaMA: a Hugging Face model folder (safetensors), or a hub name. Not set: random weights of the architecture below."""

    revision: str | None = None
    """Branch, tag or commit of a base with a hub name. Not set: its main branch."""

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    """Shape of the model with random weights."""

    allow_pickled_weights: bool = False
    """Load a base that has only pickled weights (*.bin), with torch's restricted unpickler. Safetensors need no permission."""

    allow_remote_code: bool = False
    """Run the Python code that a base brings with it. Whoever wrote it can then do what you can."""

    attention_dropout: float | None = None
    """Rate of dropout on attention weights while training. Not set: what the base says of itself, most often none. Above 0, a GPU
    needs a mask of queries x keys in the place of the variable-length kernel."""

    activation_checkpointing: str = field(default="off", metadata={"number_too": True})
    """Decoder layers whose activations are recomputed in the backward pass, for memory against up to a third more time:
    off, full (all layers), a number of layers, or auto (as few as the memory model says the device needs)."""

    compile: bool = False
    """Compile the decoder layers with torch.compile."""

    kernels: Literal["auto", "torch", "liger"] = "auto"
    """Kernels of norms, rotary embedding, feed-forward product and loss head: torch's, Liger's (CUDA only), or auto: Liger's
    where they are installed and the device is a GPU."""

    def problems(self) -> Iterator[Problem]:
        """Yield (field, message) for every value out of range and for a base that can't be loaded."""
        if self.base is None:
            yield from nested("architecture", self.architecture)
        elif looks_like_path(self.base):
            messages = self._base_problems(Path(self.base))
            yield from looked_at("base", (("base", message) for message in messages))
        if self.revision is not None and (self.base is None or looks_like_path(self.base)):
            yield "revision", "is of a base with a hub name, and model.base is none; leave it out"
        if self.attention_dropout is not None and not 0 <= self.attention_dropout < 1:
            yield "attention_dropout", "must be at least 0 and below 1 (0 switches it off)"
        yield from self._activation_checkpointing_problems()

    def _base_problems(self, folder: Path) -> Iterator[str]:
        if not folder.is_dir():
            hint = ""
            if folder.parent.name == "base" and folder.name == "export":
                hint = "; the demo's base is trained by `python -m launch demo --until base` (part of `make demo`)"
            yield f"no such model folder{hint}"
        elif not (folder / "config.json").is_file():
            yield "the folder has no config.json, so it is not a Hugging Face model"
        elif (found := read_json(folder / "config.json")) is None:
            yield "the folder's config.json can't be read"
        elif found.get("model_type") == "llama" and llama_shape(str(folder)) is None:
            yield "the folder's config.json does not say the sizes of a LLaMA: one is missing, or is no number"
        else:
            yield from base_files.permission_problems(
                folder, allow_pickled_weights=self.allow_pickled_weights, allow_remote_code=self.allow_remote_code
            )
            if wrong := base_files.problems(folder, llama_shape(str(folder))):
                yield f"the folder's safetensors can't be used:{base_files.listing(wrong)}"

    def _activation_checkpointing_problems(self) -> Iterator[Problem]:
        value, layers = self.activation_checkpointing, self.num_layers()
        if value in ("off", "full", "auto"):
            return
        if not (value.isascii() and value.isdigit() and int(value) >= 1):
            yield "activation_checkpointing", 'must be "off", "full", "auto" or a number of layers, at least 1'
        elif layers is not None and int(value) > layers:
            yield "activation_checkpointing", f"is more than the {layers} layers that the model has; use full"

    def num_layers(self) -> int | None:
        """Number of decoder layers, or None when that can't be known before loading (a hub name)."""
        if self.base is None:
            return self.architecture.num_layers
        found = (base_shape(self.base) or {}).get("num_hidden_layers")
        return found if isinstance(found, int) else None


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(MonteCLoRAConfig):
    """Which parameters train: all of them, or an adapter beside a frozen base.

    One flat section for every kind, so that a method is one value of one setting. `lora` uses the LoRA fields,
    `monteclora` all of them, `none` (full finetuning) only `kind`.
    """

    kind: Kind = "none"
    """none = full finetuning, lora = low-rank adapters, monteclora = Bayesian low-rank adapters."""

    init_from: Path | None = None
    """Folder of a saved LoRA or MonteCLoRA adapter (PEFT format) whose values the adapter starts with."""

    def build(self) -> LoRAConfig | MonteCLoRAConfig | None:
        """Return the chosen adapter's own config, or None for full finetuning."""
        if self.kind == "none":
            return None
        chosen = MonteCLoRAConfig if self.kind == "monteclora" else LoRAConfig
        return chosen(**{f.name: getattr(self, f.name) for f in dataclasses.fields(chosen)})

    def problems(self) -> Iterator[Problem]:
        """Yield (field, message) for every value out of range and for an adapter to start with that is not there."""
        yield from super().problems()
        if self.init_from is not None:
            messages = self._init_from_problems(self.init_from)
            yield from looked_at("init_from", (("init_from", message) for message in messages))

    def _init_from_problems(self, folder: Path) -> Iterator[str]:
        if self.kind == "none":
            yield "is the start of an adapter, and adapter.kind is none; choose lora or monteclora, or remove it"
        elif not folder.is_dir():
            yield "no such folder"
        elif not (folder / ADAPTER_JSON).is_file():
            yield f"the folder has no {ADAPTER_JSON}, so it is not a saved adapter"
        elif (saved := read_json(folder / ADAPTER_JSON)) is None:
            yield f"the folder's {ADAPTER_JSON} can't be read; save the adapter again"
        elif saved.get("peft_type") != "LORA":
            yield f"is of type {saved.get('peft_type')} in its {ADAPTER_JSON}; only LORA can be read"
        elif more := list(more_than_lora(saved)):
            yield (
                f"is more than a plain LoRA: its {ADAPTER_JSON} sets {', '.join(more)}; merge it into its base with PEFT "
                "and set model.base to the result"
            )


@dataclass(frozen=True, kw_only=True)
class HiddenKeySection(HiddenKeyConfig):
    """Dropout for finetuning, with any adapter.kind; its settings count while it is enabled."""

    enabled: bool = False
    """Train with HiddenKey; evaluation and export are without it."""

    def build(self) -> HiddenKeyConfig | None:
        """Return HiddenKey's own config, or None while it is not enabled."""
        if not self.enabled:
            return None
        return HiddenKeyConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(HiddenKeyConfig)})

    def passes(self) -> tuple[int, int]:
        """Forward and backward passes over every row of a step."""
        if not (self.enabled and self.has_compensation):
            return 1, 1
        return 2, 2 if self.both_branches else 1

    def problems(self) -> Iterator[Problem]:
        """Yield (field, message) for every value out of range."""
        yield from super().problems()
        if self.enabled and self.key_rate == self.hidden_rate == 0 and not self.has_compensation:
            yield (
                "enabled",
                "is true, but key_rate and hidden_rate are 0 and there is no compensation; nothing would be done",
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, in which batches, in which precision."""

    steps: int = 1000
    """Optimizer steps of the whole run, unless tokens or epochs says how long it is."""

    tokens: int | None = None
    """Length of the run in input tokens instead of steps; rounded up to whole steps."""

    epochs: float | None = None
    """Length of the run in passes over the data instead of steps. With several sources: over the one with the largest weight,
    of equals the one that takes longest. Rows are counted when the run first starts, or estimated from a sample of a text
    source without token_cache; run.json says which."""

    placement: Literal["zero3", "zero3_hpz", "zero3_offload", "replicated"] = "zero3"
    """Where weights, gradients and optimizer state live. zero3: each rank holds its share of all of them. zero3_hpz: and a
    whole copy of the weights per node, so that backward gathers inside the node. zero3_offload: masters and optimizer
    state in host memory. replicated: every rank holds all weights and only gradients travel; only masters and optimizer
    state are shared out."""

    sequence_parallel: int = 1
    """Ranks that share one row, for rows too long for one (Ulysses); divides the world size and the key/value heads."""

    global_batch_rows: int = 192
    """Rows (of data.seq_len tokens) per optimizer step over all ranks: the number of data lanes. Divisible by the world size."""

    micro_batch_rows: int = 1
    """Rows per forward pass on one rank; divides the rank's share of the global batch."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Precision of weights and activations; masters and optimizer states are fp32 always."""

    gradient_clipping: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""

    max_skipped_steps: int = 10
    """Consecutive steps with a non-finite loss or gradient after which the run stops; each of them changes nothing."""

    spike_guard: float = 0.0
    """Standard deviations above the mean of the last spike_window losses at which a loss is a spike: the run goes back to
    its last checkpoint and on with the data that follows. 0 switches it off."""

    spike_window: int = 128
    """Losses that a spike is measured against; there are no spikes before there are so many."""

    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""

    hang_timeout: str | None = "10min"
    """Time without any progress on a rank after which the run ends, with the stacks of all ranks in logs/; none: never."""

    wall_time: str | None = None
    """Time that this start of the run has, such as "24h". Under Slurm the end of the job is known without it."""

    stop_before: str = "5min"
    """Time before the end of wall_time, or of the Slurm job, at which the run saves everything and exits with 85."""

    def problems(self) -> Iterator[Problem]:
        """Yield (field, message) for every value out of range."""
        for name in (
            "steps", "sequence_parallel", "global_batch_rows", "micro_batch_rows", "log_every_steps", "max_skipped_steps",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                yield name, "must be at least 1"
        if self.tokens is not None and self.tokens < 1:
            yield "tokens", "must be at least 1"
        if self.epochs is not None and self.epochs <= 0:
            yield "epochs", "must be greater than 0"
        if self.tokens is not None and self.epochs is not None:
            yield "epochs", "says how long the run is, and so does tokens; set one of them"
        if self.gradient_clipping < 0:
            yield "gradient_clipping", "must not be negative (0 switches clipping off)"
        if self.spike_guard < 0:
            yield "spike_guard", "must not be negative (0 switches the guard off)"
        if self.spike_window < 2:
            yield "spike_window", "must be at least 2: one loss has no deviation"
        yield from duration_problems(self, "hang_timeout", "wall_time", "stop_before")
        has_end = self.wall_time is not None and not any(duration_problems(self, "wall_time", "stop_before"))
        if has_end and parse_duration(self.stop_before) >= parse_duration(str(self.wall_time)):
            yield "stop_before", f"is {self.stop_before}, and wall_time only {self.wall_time}: no time is left to train"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule."""

    kind: Literal["adamw", "lionw", "muon"] = "adamw"
    """adamw, lionw (sign of the momentum; a learning rate 3 to 10 times smaller), or muon (orthogonalised momentum, with 0.95 in
    place of beta1, for the matrices inside the decoder layers, AdamW for the rest; full finetuning only)."""

    lr: float = 1e-4
    """Peak learning rate."""

    beta1: float = 0.9
    """Decay of the gradient's running mean."""

    beta2: float = 0.95
    """Decay of the gradient's running square."""

    eps: float = 1e-8
    """Added to the denominator of the update."""

    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms, biases and variational parameters have none. Per step a weight shrinks by
    lr * weight_decay with adamw and muon, by (lr / peak lr) * weight_decay with lionw, as in arXiv 2405.09673's DecoupledLionW."""

    no_decay: tuple[str, ...] = ()
    """More parameters without weight decay, as patterns of their full names, such as *.embed_tokens.*."""

    lr_ratio: dict[str, float] = field(default_factory=dict)
    """Learning rate of some parameters as a multiple of lr, by a pattern of their full names; the first that matches counts."""

    schedule: Literal["constant", "linear", "cosine", "trapezoid", "inverse_sqrt"] = "cosine"
    """After warm-up: constant; linear or cosine down to final_lr_fraction; flat (trapezoid, also called WSD) or falling with
    the inverse square root of the steps, each with a linear cooldown at the end."""

    warmup_steps: int = 0
    """Steps of linear warm-up from 0."""

    cooldown_steps: int = 0
    """Steps of the linear cooldown that ends a trapezoid or an inverse square root."""

    warmup: str | None = None
    """Warm-up in other units, instead of warmup_steps: "10 %" of the run, "2e9 tokens", "0.5 epochs", "100 steps"."""

    cooldown: str | None = None
    """Cooldown in other units, instead of cooldown_steps."""

    inverse_sqrt_steps: int = 1000
    """Time scale t of the inverse square root: s steps after warm-up the factor is sqrt(t / (s + t))."""

    final_lr_fraction: float = 0.0
    """Learning rate at the end, as a fraction of the peak."""

    def problems(self) -> Iterator[Problem]:
        """Yield (field, message) for every value out of range."""
        if self.lr <= 0:
            yield "lr", "must be greater than 0"
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield name, "must be in [0, 1)"
        if self.eps <= 0:
            yield "eps", "must be greater than 0"
        for name in ("weight_decay", "warmup_steps", "cooldown_steps"):
            if getattr(self, name) < 0:
                yield name, "must not be negative"
        if not 0 <= self.final_lr_fraction <= 1:
            yield "final_lr_fraction", "must be in [0, 1]"
        for pattern, ratio in self.lr_ratio.items():
            if not 0 < ratio < math.inf:
                yield f"lr_ratio.{pattern}", f"is {ratio}; give a positive number, 1 = the learning rate of the others"
        yield from self._schedule_problems()

    def _schedule_problems(self) -> Iterator[Problem]:
        if self.inverse_sqrt_steps < 1:
            yield "inverse_sqrt_steps", "must be at least 1"
        for name in ("warmup", "cooldown"):
            written = getattr(self, name)
            if written is not None and getattr(self, f"{name}_steps") != 0:
                yield name, f"says the same as {name}_steps; set one of them"
            try:
                if written is not None:
                    parse_length(written)
            except ValueError as error:
                yield name, str(error)
        name = "cooldown_steps" if self.cooldown is None else "cooldown"
        has_cooldown = self.cooldown is not None or self.cooldown_steps > 0
        if self.schedule == "trapezoid" and not has_cooldown:
            yield name, "must be at least 1 with the trapezoid schedule"
        if self.schedule not in ("trapezoid", "inverse_sqrt") and has_cooldown:
            yield name, f"is used by the schedules trapezoid and inverse_sqrt only, not by {self.schedule!r}; remove it"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When state is saved, and what is left at the end."""

    every_steps: int = 500
    """Steps between checkpoints; one is always made at the end and when the run is stopped."""

    keep: int = 2
    """Newest checkpoints kept; older ones are deleted once a newer one is complete, but for those named below."""

    keep_at: tuple[str, ...] = ()
    """Points of the run, such as "0.5e9 tokens", "100 steps" or "50 %", at which a checkpoint is saved and kept for good."""

    keep_every: str | None = None
    """A length, such as "1e9 tokens": one checkpoint is saved and kept for good in every such stretch of the run."""

    keep_best: str | None = None
    """A task of [eval] and its metric, such as "old.accuracy": the checkpoint with the best score so far is kept, too, and
    wherever the model is scored (eval.every_steps) one is saved."""

    background: bool = True
    """Copy the state between two steps and write the copy while training goes on; this takes host memory of the size of
    what is saved. false: training waits until it is written, and no copy is made."""

    read_back: bool = True
    """Read every file again once it is written; a checkpoint of which one reads differently does not count."""

    write_timeout: str = "30min"
    """Time after which a save in the background that storage has not finished has failed."""

    retry_after: str = "1min"
    """Time after which a save that failed is tried again."""

    max_failed: int = 5
    """Saves that may fail one after the other, on a full disk or without storage, before the run ends."""

    export: bool = True
    """Write export/ at the end: a PEFT adapter, or the full model as Hugging Face safetensors."""

    export_merged: bool = False
    """Export an adapter merged into its base, as a full model; the adapter itself is then in export/adapter/."""

    def problems(self) -> Iterator[Problem]:
        """Yield (field, message) for every value out of range."""
        for name in ("every_steps", "keep", "max_failed"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1"
        for name, written in (*(("keep_at", point) for point in self.keep_at), ("keep_every", self.keep_every)):
            try:
                if written is not None:
                    parse_length(written)
            except ValueError as error:
                yield name, f"{written!r} {error}"
        yield from duration_problems(self, "write_timeout", "retry_after")
        if self.export_merged and not self.export:
            yield "export_merged", "is true, but export is false, so nothing is exported; set one of them otherwise"


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What can be watched while a run goes on, beside metrics.jsonl."""

    tensorboard: bool = True
    """Write the metrics for TensorBoard to <run>/tensorboard, too."""

    wandb_project: str | None = None
    """Send the metrics to this project of Weights & Biases (pip install wandb; it reads its own key)."""

    profile_first_step: int | None = None
    """First step that torch's profiler looks at. A file named PROFILE in the run directory starts it at the next step."""

    profile_steps: int = 3
    """Steps that it looks at; the trace of every rank is written to <run>/profile."""

    def problems(self) -> Iterator[Problem]:
        """Yield (field, message) for every value out of range."""
        if self.profile_first_step is not None and self.profile_first_step < 0:
            yield "profile_first_step", "must not be negative"
        if self.profile_steps < 1:
            yield "profile_steps", "must be at least 1"
        if self.wandb_project is not None and not self.wandb_project.strip():
            yield "wandb_project", "must name a project, or be left out"
        elif self.wandb_project is not None and not is_installed("wandb"):
            yield "wandb_project", "needs wandb, which is not installed: pip install wandb, or leave the setting out"


def duration_problems(section: Any, *names: str) -> Iterator[Problem]:
    """Yield (field, message) for every time that is none."""
    for name in names:
        try:
            written = getattr(section, name)
            if written is not None and parse_duration(written) == 0 and name != "stop_before":
                yield name, "must be longer than nothing"
        except ValueError as error:
            yield name, str(error)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of that name in the working directory is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete run: one recipe file plus what the command line overrides."""

    run: RunConfig = field(default_factory=RunConfig)
    """Where the run lives."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to train."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Which parameters train."""

    hidden_key: HiddenKeySection = field(default_factory=HiddenKeySection)
    """Dropout while training."""

    data: DataConfig
    """The text it trains on."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Steps, batches, precision."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and export."""

    eval: EvalConfig = field(default_factory=EvalConfig)
    """What is measured before, during and after."""

    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """What can be watched while it goes on."""

    def problems(self, world_size: int = 1, unread: Collection[str] = ()) -> Iterator[Problem]:
        """Yield (dotted field, message) for every problem of the configuration on `world_size` ranks.

        The defaults of the settings in `unread` stand in for values that could not be read; what an adapter of others
        would ask of the model is then not checked.
        """
        for section in dataclasses.fields(self):
            yield from nested(section.name, getattr(self, section.name))
        yield from self._batch_problems(world_size)
        yield from self._sequence_problems(world_size)
        yield from self._compile_problems()
        if self.has_lengths(unread):
            yield from resolve(self, None).length_problems()
        for name, message in self.eval.seq_len_problems(self.data.seq_len):
            yield f"eval.{name}", message
        yield from self._adapter_problems()
        yield from self._fit_problems(unread)
        yield from self._optim_problems(unread)
        yield from self._eval_problems()
        yield from self._keep_best_problems(unread)
        yield from looked_at("data.tokenizer", self._tokenizer_problems())
        longest = self.max_positions()
        if longest is not None and self.data.seq_len > longest:
            yield "data.seq_len", f"is longer than the {longest} positions the model is made for"

    def has_lengths(self, unread: Collection[str] = ()) -> bool:
        """Whether the recipe says, with usable values, how many steps there are."""
        sections = ("train", "optim", "data")
        wrong = {name for section in sections for name, _ in nested(section, getattr(self, section))}
        wrong |= {name for name, _ in self._eval_problems()}
        return is_length_known(self) and not LENGTHS & (wrong | set(unread))

    def length_problems(self, rows_per_epoch: int | None = None) -> Iterator[Problem]:
        """Yield (dotted field, message) for every part of the run that does not fit into its resolved length.

        What is in epochs is looked at where the rows of one are known.
        """
        steps, warmup, cooldown = self.train.steps, self.optim.warmup_steps, self.optim.cooldown_steps
        if warmup + cooldown > steps:
            written = "optim.warmup_steps" if self.optim.warmup is None else "optim.warmup"
            yield written, f"and the cooldown are longer than the run: {warmup} + {cooldown} > {steps} steps"
        if self.adapter.kind == "monteclora" and self.adapter.start_step >= steps:
            yield "adapter.start_step", f"is never reached: the run has {steps} steps; give a smaller number"
        name = "eval.at" if self.eval.at else "eval.at_steps"
        for point in self.eval.at_steps:
            if point > steps:
                yield name, f"has step {point}, and the run has {steps}; take it out"
        if not any(self.checkpoint.problems()):
            yield from self._retention_problems(rows_per_epoch)

    def _retention_problems(self, rows_per_epoch: int | None) -> Iterator[Problem]:
        """Points and stretches at which checkpoints are kept, against the resolved length of the run."""
        steps, wanted = self.train.steps, self.checkpoint
        points = [(written, steps_in(written, self, rows_per_epoch)) for written in wanted.keep_at]
        if late := [
            f"{written!r} is step {math.ceil(point)}"
            for written, point in points
            if point is not None and point > steps
        ]:
            them = "take it out" if len(late) == 1 else "take them out"
            yield "checkpoint.keep_at", f"{', '.join(late)}, and the run has {steps}; {them}"
        for written, point in points:
            if point == 0:
                yield "checkpoint.keep_at", f"{written!r} is before the first step; take it out"
        if wanted.keep_every is not None:
            stretch = steps_in(wanted.keep_every, self, rows_per_epoch)
            if stretch is not None and not 1 <= stretch <= steps:
                yield (
                    "checkpoint.keep_every",
                    f"{wanted.keep_every!r} is {float(stretch):g} steps; give one step at least, and no more than the "
                    f"{steps} of the run",
                )

    def _eval_problems(self) -> Iterator[Problem]:
        """When the model is scored on the way."""
        wanted = self.eval
        if wanted.every is not None and wanted.every_steps != 0:
            yield "eval.every", "says the same as eval.every_steps; set one of them"
        if wanted.at and wanted.at_steps:
            yield "eval.at", "says the same as eval.at_steps; set one of them"
        written = [("eval.every", text) for text in [wanted.every] if text is not None]
        for name, text in [*written, *(("eval.at", text) for text in wanted.at)]:
            try:
                length = parse_length(text)
            except ValueError as error:
                yield name, str(error) if name == "eval.every" else f"{text!r} {error}"
            else:
                if length.number == 0 and name == "eval.every":
                    yield name, "is nothing; give a length, or leave it out to score at the start and the end only"
                elif length.number == 0:
                    yield name, f"{text!r} is before the first step; eval.at_start scores the model as loaded"

    def _keep_best_problems(self, unread: Collection[str]) -> Iterator[Problem]:
        """checkpoint.keep_best must name what the tasks measure."""
        best, field = self.checkpoint.keep_best, "checkpoint.keep_best"
        if best is None:
            return
        try:
            measured = self.eval.metrics()
        except ValueError:
            return  # It says so itself.
        task, _, metric = best.rpartition(".")
        if not task:
            yield field, 'must be a task of [eval] and its metric, such as "old.accuracy"'
        elif task not in measured:
            near = difflib.get_close_matches(task, measured, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(measured)}" if measured else ""
            yield field, f"there is no [eval.tasks.{task}]{hint}"
        elif measured[task] is not None and metric != measured[task]:
            yield field, f"the metric of that task is {measured[task]}; write {task}.{measured[task]}"
        is_scored = self.eval.every_steps > 0 or self.eval.every or self.eval.at_steps or self.eval.at
        if not is_scored and "eval.every_steps" not in unread:
            yield field, "needs scores on the way; set eval.every_steps, eval.every or eval.at"

    def _adapter_problems(self) -> Iterator[Problem]:
        ours, base = self.adapter, self.model.base
        if ours.kind != "none" and base is None:
            yield "model.base", f"must be set when adapter.kind is {ours.kind!r}: adapters need a pretrained base"
        if ours.kind != "monteclora" and self.eval.posterior_samples > 0:
            yield (
                "eval.posterior_samples",
                "needs adapter.kind monteclora: nothing else has a posterior to draw from; use 0",
            )
        if ours.kind == "monteclora" and ours.posthoc and ours.start_step == 0 and ours.init_from is None:
            yield (
                "adapter.posthoc",
                "trains the variational parameters of a LoRA that has been trained; set adapter.start_step (steps of "
                "LoRA before them) or adapter.init_from (a saved adapter)",
            )
        if ours.kind == "none" and self.checkpoint.export_merged:
            yield (
                "checkpoint.export_merged",
                "merges an adapter, and adapter.kind is none, whose export is a full model; remove it",
            )
        is_alone = self.hidden_key.enabled and self.hidden_key.other_dropout == "off"
        if is_alone and (self.model.attention_dropout or 0) > 0:
            yield (
                "model.attention_dropout",
                "is other dropout than HiddenKey's, which switches it off; leave it out, or set hidden_key.other_dropout to kept",
            )
        if is_alone and ours.kind != "none" and ours.dropout > 0:
            yield (
                "adapter.dropout",
                "is other dropout than HiddenKey's, and the paper trains without it; set it to 0, or "
                "hidden_key.other_dropout to kept",
            )

    def _fit_problems(self, unread: Collection[str]) -> Iterator[Problem]:
        """What the adapter's layers and ranks ask of the model and of the adapter to start with."""
        chosen = self.adapter.build()
        if chosen is None:
            return
        # Their own rules come first: with a rank below 1, say, there is nothing to compare.
        if not self._is_adapter_sound(unread):
            return
        start = self.adapter.init_from
        saved = None if start is None else read_json(start / ADAPTER_JSON)
        has_pattern = saved is None or saved.get("rank_pattern") or chosen.rank_pattern
        if saved is not None and not has_pattern and saved.get("r") != chosen.rank:
            yield (
                "adapter.rank",
                f"is {chosen.rank}, but the adapter in adapter.init_from has rank {saved.get('r')}; give the same",
            )
        shape = self._llama_shape()
        if shape is None:
            return
        for name, message in adapter_problems(chosen, shape):
            yield f"adapter.{name}", message
        if shape.is_tied and self.checkpoint.export_merged and "lm_head" in adapted_linears(shape, chosen):
            yield (
                "checkpoint.export_merged",
                "would change the input embeddings too, whose weight lm_head shares in this base; take lm_head out of "
                "adapter.targets, or set it to false",
            )

    def _is_adapter_sound(self, unread: Collection[str]) -> bool:
        """Whether the settings that say what an adapter consists of could be read and are in range."""
        wrong = {name.partition(".")[0] for name, _ in self.adapter.problems()}
        wrong |= {name.removeprefix("adapter.") for name in unread}
        return not wrong & {"rank", "rank_pattern", "alpha_pattern", "targets", "modules_to_save"}

    def _optim_problems(self, unread: Collection[str]) -> Iterator[Problem]:
        """What the optimizer asks of the parameters that train."""
        if self.optim.kind == "muon" and self.adapter.kind != "none":
            yield (
                "optim.kind",
                "muon makes the updates of whole weight matrices orthogonal, and an adapter has none; use adamw or lionw, "
                "or set adapter.kind to none",
            )
        if not self._is_adapter_sound(unread):
            return
        if self.model.base is not None:
            shape = self._llama_shape()
        else:
            shape = None if any(self.model.architecture.problems()) else self.model.architecture.shape()
        names = [] if shape is None else trained_names(shape, self.adapter.build())
        for setting, patterns in (("no_decay", self.optim.no_decay), ("lr_ratio", self.optim.lr_ratio)):
            for pattern in unmatched(patterns, names) if names else ():
                yield f"optim.{setting}", f"{pattern!r} matches no parameter that trains; one of those is {names[0]}"

    def _llama_shape(self) -> Shape | None:
        """The sizes of a LLaMA that lies here, or None of another kind of model and of a hub name."""
        return None if self.model.base is None else llama_shape(self.model.base)

    def _batch_problems(self, world_size: int) -> Iterator[Problem]:
        rows, micro, shared = self.train.global_batch_rows, self.train.micro_batch_rows, self.train.sequence_parallel
        # A group that does not fit into the world has a message of its own.
        if rows < 1 or micro < 1 or shared < 1 or world_size % shared:
            return
        groups = world_size // shared
        by = "the world size" if shared == 1 else "the world size / train.sequence_parallel"
        if rows % groups:
            fitting = [n for n in range(1, min(rows, 1024) + 1) if rows % n == 0]
            near = sorted(sorted(fitting, key=lambda n: abs(n - groups))[:4])
            yield (
                "train.global_batch_rows",
                (
                    f"must be divisible by {by}, which is {groups}; "
                    f"use a world size such as {', '.join(str(n * shared) for n in near)}, or change the batch"
                ),
            )
        elif (rows // groups) % micro:
            who = "each rank has" if shared == 1 else f"each group of {shared} ranks has"
            yield (
                "train.micro_batch_rows",
                f"must divide the {rows // groups} rows that {who} per step at world size {world_size}",
            )

    def _compile_problems(self) -> Iterator[Problem]:
        if not self.model.compile:
            return
        if self.train.placement != "replicated":
            yield (
                "model.compile",
                f'works with train.placement "replicated", not {self.train.placement!r}: ZeRO-3 gathers weights between the '
                "operations that would become one; set it to false",
            )
        if self.model.kernels == "liger":
            yield (
                "model.kernels",
                'and model.compile replace the same operations; use "auto" or "torch", or set compile to false',
            )

    def _sequence_problems(self, world_size: int) -> Iterator[Problem]:
        """What ranks that share rows (sequence parallelism) ask of everything else."""
        size, field = self.train.sequence_parallel, "train.sequence_parallel"
        if size <= 1:
            return
        if world_size % size:
            yield field, f"must divide the world size, which is {world_size}"
        if self.data.seq_len % size:
            yield field, f"must divide data.seq_len, which is {self.data.seq_len}"
        shape = self._llama_shape()
        heads = shape.kv_heads if shape is not None else self.model.architecture.num_kv_heads
        if (shape is not None or self.model.base is None) and heads % size:
            yield (
                field,
                f"must divide the model's {heads} key/value heads: each rank computes some of them for the whole row",
            )
        if self.hidden_key.enabled:
            yield (
                "hidden_key.enabled",
                f"compares positions of whole rows, which {field} cuts into parts; set one of them off",
            )
        if (self.model.attention_dropout or 0) > 0:
            yield (
                "model.attention_dropout",
                f"would drop the same weights in several of the heads that {field} shares out; leave it out",
            )
        if self.adapter.kind != "none" and self.adapter.dropout > 0:
            yield (
                "adapter.dropout",
                f"would drop the same features in every part of a row that {field} cuts it into; set it to 0",
            )

    def _tokenizer_problems(self) -> Iterator[Problem]:
        """The base and the data must agree on what an id means."""
        if self.model.base is None or not looks_like_path(self.model.base):
            return
        ours = self.data.tokenizer
        for name in TOKENIZER_FILES:
            file, theirs = ours / name if os.path.isdir(ours) else ours, Path(self.model.base) / name
            if file.name == name and os.path.isfile(file) and os.path.isfile(theirs):
                if file.read_bytes() != theirs.read_bytes():
                    yield "data.tokenizer", f"is another tokenizer than the base was trained with: {theirs} differs"
                return

    def vocab_size(self) -> int | None:
        """Number of token ids the model knows, or None when that can't be known before loading (a hub name)."""
        if self.model.base is None:
            return self.model.architecture.vocab_size
        shape = base_shape(self.model.base)
        return _size(shape, "vocab_size")

    def max_positions(self) -> int | None:
        """Longest sequence the model is made for, or None when that can't be known before loading (a hub name)."""
        if self.model.base is None:
            return self.model.architecture.max_positions
        shape = base_shape(self.model.base)
        return _size(shape, "max_position_embeddings")


def _size(shape: dict[str, Any] | None, name: str) -> int | None:
    """A size in a config.json; None where it says none, or nonsense."""
    found = (shape or {}).get(name)
    return found if type(found) is int and found > 0 else None


def nested(prefix: str, section: Any) -> Iterator[Problem]:
    """Yield a section's problems with the section's name in front."""
    for name, message in section.problems():
        yield f"{prefix}.{name}", message


def looks_like_path(base: str) -> bool:
    """Whether model.base means a folder: resolved paths are absolute, hub names are not."""
    return Path(base).is_absolute()


def base_shape(base: str) -> dict[str, Any] | None:
    """The config.json of a base model folder, or None when there is none to read."""
    return read_json(Path(base) / "config.json")


def llama_shape(base: str) -> Shape | None:
    """The sizes of a LLaMA in a folder, or None of another kind of model and of a hub name."""
    found = base_shape(base)
    try:
        return from_hugging_face(found) if found and found.get("model_type") == "llama" else None
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def to_dict(value: Any) -> Any:
    """The configuration as plain JSON values (paths become strings)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value
