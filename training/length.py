"""How long a run and its parts are: written in steps, tokens or epochs, resolved to steps.

A step takes `train.global_batch_rows` rows of `data.seq_len` input tokens, of examples with their padding. How many rows
an epoch has is a matter of the data (data_pipeline.stream.epoch); all else is known from the recipe.
"""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from training.config import Config

GRAMMAR = 'write a number and its unit: "10 %" of the run, "2e9 tokens", "0.5 epochs" or "100 steps"'
_LENGTH = re.compile(r"(\d+(?:_\d+)*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)\s*(%|steps?|tokens?|epochs?)")


class Length(NamedTuple):
    """A part of a run: a number, exactly as written, and its unit."""

    number: Fraction
    unit: str  # %, step, token or epoch


def parse_length(text: str) -> Length:
    """The length that `text` means; a unit may be singular or plural.

    Raises:
        ValueError: it means none; the message shows what does.
    """
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"is no length; {GRAMMAR}")
    return Length(Fraction(match[1]), match[2].removesuffix("s"))


def needs_epoch(config: Config) -> bool:
    """Whether a length is in epochs, so that those of the data must be known."""
    optim, checkpoint = config.optim, config.checkpoint
    written = (
        optim.warmup, optim.cooldown, config.eval.every, *config.eval.at, checkpoint.keep_every, *checkpoint.keep_at
    )  # fmt: skip
    return config.train.epochs is not None or any(
        text is not None and parse_length(text).unit == "epoch" for text in written
    )


def is_length_known(config: Config) -> bool:
    """Whether the recipe alone says how many steps the run has."""
    return config.train.epochs is None


def resolve(config: Config, rows_per_epoch: int | None) -> Config:
    """The configuration with train.steps, optim.warmup_steps, optim.cooldown_steps, eval.every_steps and eval.at_steps as written lengths mean
    them.

    The run's length is rounded up to whole steps; all others are rounded to the nearest, but a positive length is one step
    at least. Nothing else changes, and resolving again gives the same.

    Args:
        config: without problems in its lengths.
        rows_per_epoch: rows in one pass over the data; None: not known, and what is in epochs stays as it is.
    """
    steps, optim = _steps_of_run(config, rows_per_epoch), config.optim
    warmup, cooldown, every = (
        None if text is None else steps_in(text, config, rows_per_epoch)
        for text in (optim.warmup, optim.cooldown, config.eval.every)
    )
    points = [steps_in(text, config, rows_per_epoch) for text in config.eval.at]
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=config.train.steps if steps is None else steps),
        optim=dataclasses.replace(
            optim,
            warmup_steps=optim.warmup_steps if warmup is None else _whole(warmup),
            cooldown_steps=optim.cooldown_steps if cooldown is None else _whole(cooldown),
        ),
        eval=dataclasses.replace(
            config.eval,
            every_steps=config.eval.every_steps if every is None else _whole(every),
            at_steps=tuple(_whole(point) for point in points if point is not None) or config.eval.at_steps,
        ),
    )


def steps_in(text: str, config: Config, rows_per_epoch: int | None) -> Fraction | None:
    """How many steps of a run a written length is, exactly; None: that is not known without the data.

    Args:
        text: a length without problems.
        config: of the run.
        rows_per_epoch: rows in one pass over the data; None: not known.
    """
    length = parse_length(text)
    if length.unit == "%":
        # "10 %" of a run of unknown length is unknown.
        steps = _steps_of_run(config, rows_per_epoch)
        return None if steps is None else length.number * steps / 100
    steps_per_unit = _steps_per_unit(config, rows_per_epoch)[length.unit]
    return None if steps_per_unit is None else length.number * steps_per_unit


def _steps_per_unit(config: Config, rows_per_epoch: int | None) -> dict[str, Fraction | None]:
    rows = config.train.global_batch_rows
    return {
        "step": Fraction(1),
        "token": Fraction(1, rows * config.data.seq_len),
        "epoch": None if rows_per_epoch is None else Fraction(rows_per_epoch, rows),
    }


def _steps_of_run(config: Config, rows_per_epoch: int | None) -> int | None:
    """Steps of the whole run, None while they are not known."""
    train, per_unit = config.train, _steps_per_unit(config, rows_per_epoch)
    if train.tokens is not None:
        written, rate = Fraction(train.tokens), per_unit["token"]
    elif train.epochs is not None:
        # As it is written: 0.1 is a tenth.
        written, rate = Fraction(repr(train.epochs)), per_unit["epoch"]
    else:
        return train.steps
    return None if rate is None else max(1, math.ceil(written * rate))


def _whole(steps: Fraction) -> int:
    """A part of a run in whole steps; a positive one has one at least."""
    return max(round(steps), 1 if steps else 0)
