"""transformers' Trainer on pairs, as one writes it: DataCollatorForSeq2Seq pads to the longest of the default batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Otherwise DeepSpeed, which transformers imports, says that it finds no GPU.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import instructions
import torch
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Columns(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples as the collator wants them, encoded beforehand."""

    def __init__(self, examples: list[instructions.Example]) -> None:
        self._examples = [
            {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": labels.tolist()}
            for ids, labels in examples
        ]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[index]


def collator(folder: Path) -> DataCollatorForSeq2Seq:
    """The one of transformers, with the tokenizer as transformers has it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<unk>")
    return DataCollatorForSeq2Seq(tokenizer=tokenizer)


class Timing(TrainerCallback):
    """Tells the clock where steps end."""

    def __init__(self, clock: instructions.Clock) -> None:
        self._clock = clock
        self.targets = self.positions = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the Trainer."""
        self._clock.step_ended(self.targets, self.positions)


class CountingTrainer(Trainer):
    """A Trainer that counts what it is given."""

    timing: Timing

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of a batch."""
        # The label of the first token is not predicted.
        self.timing.targets = int((inputs["labels"][:, 1:] != instructions.IGNORE).sum())
        self.timing.positions = inputs["labels"].numel()
        return super().training_step(model, inputs, *args, **kwargs)


def main() -> None:
    """Measure an epoch."""
    asked = instructions.arguments(str(__doc__))
    examples = instructions.read_examples(asked.folder)
    settings = TrainingArguments(
        output_dir=str(asked.folder / "unused"),
        num_train_epochs=1,
        learning_rate=instructions.LEARNING_RATE,
        lr_scheduler_type="constant",
        train_sampling_strategy=asked.sampling,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock = instructions.Clock(asked.warm_up)
    timing = Timing(clock)
    model = AutoModelForCausalLM.from_pretrained(asked.folder / "base", attn_implementation="sdpa")
    trainer = CountingTrainer(
        model=model,
        args=settings,
        train_dataset=Columns(examples),
        data_collator=collator(asked.folder),
        callbacks=[timing],
    )
    trainer.timing = timing
    trainer.train()
    clock.report()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
