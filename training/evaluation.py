"""Scores of the live model: before, during and after training, written to evals/<step>.json."""

from __future__ import annotations

import time
from functools import partial

from data_pipeline.encoding.tokenizer import Tokenizer
from evals import check_tasks, evaluate
from training.boundary import Boundary
from training.config import Config
from training.engine import Engine
from training.progress import Progress
from training.ranks import distributed
from training.recipe import ConfigError
from training.record.scores import Scores
from training.record.unwritten import Unwritten
from training.watch.display import Display
from training.watch.monitors import Monitors


def check_inputs(tokenizer: Tokenizer, config: Config) -> None:
    """Refuse a tokenizer that doesn't fit the model or the tasks, and held-out files that no task can be made of.

    Raises:
        ConfigError: naming every setting the tokenizer contradicts.
        EvalError: naming the file and line, now and not at the end of the run.
    """
    problems = []
    vocab = config.vocab_size()
    if vocab is not None and tokenizer.vocab_size > vocab:
        problems.append(
            f'data.tokenizer = "{config.data.tokenizer}": has {tokenizer.vocab_size} ids, the model knows only {vocab}'
        )
    if config.eval.tasks and tokenizer.bos_id is None:
        problems.append(
            f'data.tokenizer = "{config.data.tokenizer}": has no BOS token, which the tasks of [eval] start with'
        )
    if problems:
        raise ConfigError(problems)
    if config.eval.tasks:
        assert tokenizer.bos_id is not None
        check_tasks(config.eval.tasks, encode=tokenizer.encode, bos_id=tokenizer.bos_id, seq_len=config.data.seq_len)


class Evaluation:
    """The recipe's tasks, ready to be run on the engine by all ranks together."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        config: Config,
        display: Display,
        boundary: Boundary,
        monitors: Monitors,
        unwritten: Unwritten | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._config = engine, tokenizer, config
        self._display, self._boundary, self._monitors = display, boundary, monitors
        self._unwritten = unwritten or Unwritten(display.say)
        self._scores = Scores(config.run.dir)

    def is_due(self, step: int) -> bool:
        """Whether the model is to be scored after `step` steps: first, last, and every eval.every_steps in between."""
        if step == 0:
            return self._config.eval.at_start
        every = self._config.eval.every_steps
        return step == self._config.train.steps or bool(every and step % every == 0)

    def drop_after(self, step: int) -> None:
        """Remove scores of later steps, which a resumed run will reach again (rank 0)."""
        if self._engine.world.rank == 0:
            self._scores.drop(step)
            self._unwritten.write(self._scores)

    def run(self, progress: Progress) -> bool:
        """Score the model now unless that was done before; return False when asked to stop meanwhile."""
        tasks = self._config.eval.tasks
        is_done = distributed.any_rank(self._engine.world.rank == 0 and self._scores.has(progress.step))
        if not tasks or is_done:
            return True
        assert self._tokenizer.bos_id is not None, "check_tokenizer has seen to it"
        # Only MonteCLoRA has a posterior to draw from.
        draws = self._config.eval.posterior_samples if self._config.adapter.kind == "monteclora" else 0
        adapter = self._engine.adapter
        began = time.perf_counter()
        results = evaluate(
            self._engine.placement.model,
            encode=self._tokenizer.encode,
            bos_id=self._tokenizer.bos_id,
            tasks=tasks,
            seq_len=self._config.data.seq_len,
            batch_rows=self._config.eval.batch_rows,
            device=self._engine.device,
            rank=self._engine.world.rank,
            world_size=self._engine.world.size,
            should_stop=partial(self._boundary.cross, f"evaluation after step {progress.step}"),
            progress=self._display.evaluating,
            posterior_samples=draws,
            sampled=partial(adapter.sampled, seed=self._config.run.seed) if draws and adapter is not None else None,
        )
        seconds = time.perf_counter() - began
        progress.eval_seconds += seconds
        if results is None:
            return False
        if self._engine.world.rank == 0:
            self._scores.add(progress.step, results, seconds)
            self._unwritten.write(self._scores)
            self._monitors.write_scores(progress.step, results)
        return True
