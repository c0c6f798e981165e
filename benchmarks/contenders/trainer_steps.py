"""transformers' Trainer with DeepSpeed ZeRO-3, full finetuning or PEFT's LoRA, as one writes it: a JSON, sdpa attention."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import deepspeed
import steps
import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, training_args


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """Rows as the model's arguments."""

    def __init__(self, rows: steps.Rows) -> None:
        self._columns = {
            "input_ids": torch.from_numpy(rows.input_ids),
            "labels": torch.from_numpy(rows.labels()),
            "position_ids": torch.from_numpy(rows.position_ids),
        }

    def __len__(self) -> int:
        return len(self._columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self._columns.items()}


class Timing(TrainerCallback):
    """Tells the clock where steps end, and profiles the last one."""

    def __init__(self, clock: steps.Clock, traffic: steps.Counted, asked: Any) -> None:
        self._clock, self._traffic, self._asked = clock, traffic, asked
        self._profiler = contextlib.ExitStack()

    def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """Called by the Trainer."""
        if state.global_step == state.max_steps - 1:
            self._profiler.enter_context(steps.profiler(self._asked))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the Trainer."""
        self._clock.step_ended()
        self._traffic.step_ended()
        self._profiler.close()


class LossKeepingTrainer(Trainer):
    """A Trainer that keeps the loss of every micro-batch, unrounded."""

    losses: list[torch.Tensor]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of a micro-batch."""
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss)
        return loss


def allow_deepspeed_on_cpu() -> None:
    """Join the process group and say that it is DeepSpeed's: on a CPU the Trainer would do without."""
    deepspeed.init_distributed("gloo")
    PartialState(cpu=True).distributed_type = DistributedType.DEEPSPEED
    training_args.is_torch_bf16_gpu_available = lambda: True


def main() -> None:
    """Measure."""
    asked = steps.arguments(str(__doc__))
    ds_config = json.loads(asked.ds_config.read_text()) | {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
    }
    allow_deepspeed_on_cpu()
    settings = TrainingArguments(
        output_dir="unused",
        bf16=asked.precision == "bf16",
        accelerator_config={"use_configured_state": True},
        deepspeed=ds_config,
        per_device_train_batch_size=asked.micro,
        gradient_accumulation_steps=asked.accumulation,
        max_steps=asked.warm_up + asked.steps,
        learning_rate=steps.LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        adam_beta2=0.95,
        train_sampling_strategy="sequential",
        # The rows are there before the clock starts, as ours are: processes that load them would only take cores.
        dataloader_num_workers=0,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock = steps.Clock(asked.warm_up)
    dtype = torch.bfloat16 if asked.precision == "bf16" else torch.float32
    # After the settings, so that the weights are partitioned while they are loaded.
    model = AutoModelForCausalLM.from_pretrained(asked.base, dtype=dtype, attn_implementation="sdpa")
    if asked.method == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=steps.LORA["rank"],
            lora_alpha=steps.LORA["alpha"],
            target_modules=list(steps.LORA_TARGETS),
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
    rows_per_step = dist.get_world_size() * asked.micro * asked.accumulation
    rows = steps.make_rows(
        (asked.warm_up + asked.steps) * rows_per_step,
        seq_len=asked.seq_len,
        vocab_size=model.config.vocab_size,
        document=asked.document,
        masked=asked.masked,
    )
    traffic = steps.Counted(asked)
    timing = Timing(clock, traffic, asked)
    trainer = LossKeepingTrainer(model=model, args=settings, train_dataset=PackedDataset(rows), callbacks=[timing])
    trainer.losses = []
    trainer.train()
    first = torch.stack(trainer.losses[: asked.accumulation]).sum()
    dist.all_reduce(first)
    clock.report(first_loss=first.item() / dist.get_world_size(), traffic=traffic.result())
    steps.leave()


if __name__ == "__main__":
    sys.exit(main())
