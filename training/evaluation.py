"""Scores of the live model: before, during and after training, written to evals/<step>.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipeline.encoding.tokenizer import Tokenizer
from evals import check_tasks, evaluate
from evals.code.policy import Policy
from evals.config import EvalConfig, TaskConfig
from evals.errors import EvalError
from evals.scoring.scorer import Scorer
from evals.scoring.stopping import Stopped
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

if TYPE_CHECKING:
    from evals.harness.tasks import LoadedTask


class Suites(NamedTuple):
    """Tasks of lm-evaluation-harness, with their data."""

    on_the_way: tuple[LoadedTask, ...] = ()
    """Scored whenever the model is."""
    at_the_ends: tuple[LoadedTask, ...] = ()
    """Scored before training and at its end, too."""


def check_inputs(tokenizer: Tokenizer, config: Config, say: Callable[[str], None] = print) -> Suites:
    """Refuse a tokenizer that doesn't fit the model or the tasks, held-out files that no task can be made of, and suites
    without their data.

    Returns:
        the suites' tasks with their data, which may be away later.

    Raises:
        ConfigError: naming every setting the tokenizer contradicts.
        EvalError: naming the file and line, or every task that cannot be scored, now and not at the end of the run.
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
        check_tasks(
            config.eval.tasks,
            encode=tokenizer.encode,
            bos_id=tokenizer.bos_id,
            seq_len=config.data.seq_len,
            eos_id=tokenizer.eos_id if config.data.eos else None,
        )
    return load_suites(config, say)


def load_suites(config: Config, say: Callable[[str], None]) -> Suites:
    """The tasks of the suites.

    Raises:
        EvalError: of both lists, every task that cannot be scored.
    """
    on_the_way = config.eval.specs(is_end=False)
    at_the_ends = [spec for spec in config.eval.specs(is_end=True) if spec not in on_the_way]
    if not (on_the_way or at_the_ends):
        return Suites()
    # Imported here: the referee takes seconds to load.
    from evals.harness.run import check_suites

    loaded, problems = [], []
    for specs in (on_the_way, at_the_ends):
        try:
            tasks = check_suites(
                specs,
                data_dir=config.eval.data_dir,
                policy=policy_of(config.eval),
                max_length=max_length(config),
                max_new_tokens=config.eval.max_new_tokens,
                say=say,
            )
        except EvalError as error:
            problems.append(str(error))
        else:
            loaded.append(tuple(tasks))
    if problems:
        raise EvalError("\n".join(problems))
    return Suites(*loaded)


def max_length(config: Config) -> int:
    """Tokens in the longest input of the model, which suites may use all of."""
    return config.max_positions() or config.data.seq_len


def policy_of(wanted: EvalConfig) -> Policy:
    """How programs that the model writes are run."""
    return Policy(allow_unisolated=wanted.code_isolation == "none")


class Evaluation:
    """The recipe's tasks and suites, ready to be run on the engine by all ranks together."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        config: Config,
        display: Display,
        boundary: Boundary,
        monitors: Monitors,
        unwritten: Unwritten | None = None,
        suites: Suites | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._config = engine, tokenizer, config
        self._display, self._boundary, self._monitors = display, boundary, monitors
        self._unwritten = unwritten or Unwritten(display.say)
        self._scores = Scores(config.run.dir)
        self._suites = suites or Suites()

    def is_due(self, step: int) -> bool:
        """Whether the model is to be scored after `step` steps: first, last, and in between every
        eval.every_steps and at eval.at_steps.
        """
        wanted = self._config.eval
        if step == 0:
            return wanted.at_start
        is_between = step in wanted.at_steps or bool(wanted.every_steps and step % wanted.every_steps == 0)
        return is_between or step == self._config.train.steps

    def drop_after(self, step: int) -> None:
        """Remove scores of later steps, which a resumed run will reach again (rank 0)."""
        if self._engine.world.rank == 0:
            self._scores.drop(step)
            self._unwritten.write(self._scores)

    def run(self, progress: Progress) -> bool:
        """Score the model now unless that was done before; return False when asked to stop meanwhile."""
        step, world = progress.step, self._engine.world
        is_done, others = distributed.from_rank_0(lambda: (self._scores.has(step), self._scores.of_jobs(step)), world)
        tasks = {name: task for name, task in self._config.eval.tasks.items() if name not in others}
        is_end = step in (0, self._config.train.steps)
        asked = (*self._suites.on_the_way, *(self._suites.at_the_ends if is_end else ()))
        suites = [task for task in asked if task.spec.name not in others]
        if is_done or not (tasks or suites):
            return True
        began = time.perf_counter()
        try:
            results = self._held_out(tasks, step)
            try:
                results |= self._answered(suites, progress)
            except EvalError as error:
                if step == 0:
                    raise
                # What was trained is worth more than these scores; a job of their own can make up for them.
                self._display.say(f"WARNING: suites are not scored after step {step}: {error}")
        except Stopped:
            return False
        finally:
            seconds = time.perf_counter() - began
            progress.eval_seconds += seconds
        if world.rank == 0 and results:
            self._scores.add(step, results, seconds)
            self._unwritten.write(self._scores)
            self._monitors.write_scores(step, results)
        return True

    def _held_out(self, tasks: dict[str, TaskConfig], step: int) -> dict[str, Any]:
        """The recipe's tasks on held-out text."""
        if not tasks:
            return {}
        assert self._tokenizer.bos_id is not None, "check_inputs has seen to it"
        # Only MonteCLoRA has a posterior to draw from.
        draws = self._config.eval.posterior_samples if self._config.adapter.kind == "monteclora" else 0
        adapter, world = self._engine.adapter, self._engine.world
        results = evaluate(
            self._engine.placement.model,
            encode=self._tokenizer.encode,
            bos_id=self._tokenizer.bos_id,
            tasks=tasks,
            seq_len=self._config.data.seq_len,
            batch_tokens=self._config.eval.batch_tokens,
            device=self._engine.device,
            eos_id=self._tokenizer.eos_id if self._config.data.eos else None,
            rank=world.rank,
            world_size=world.size,
            should_stop=partial(self._boundary.cross, f"evaluation after step {step}"),
            progress=self._display.evaluating,
            posterior_samples=draws,
            sampled=partial(adapter.sampled, seed=self._config.run.seed) if draws and adapter is not None else None,
        )
        if results is None:
            raise Stopped
        return results

    def _answered(self, tasks: Sequence[LoadedTask], progress: Progress) -> dict[str, Any]:
        """Entries of the referee's tasks; what has been answered when the run is stopped is not asked again."""
        if not tasks:
            return {}
        from evals.encoder import load_codec
        from evals.harness.kept import Kept
        from evals.harness.run import evaluate_tasks

        config, world, step = self._config, self._engine.world, progress.step
        scorer = Scorer(
            model=self._engine.placement.model,
            device=self._engine.device,
            pad_id=0,
            max_length=max_length(config),
            batch_tokens=config.eval.batch_tokens,
            rank=world.rank,
            world_size=world.size,
            should_stop=partial(self._boundary.cross, f"suites after step {step}"),
        )
        # After a spike the same step comes again with other data before it.
        identity = {"step": step, "data_hash": progress.data_hash, "base": config.model.base,
                    "precision": config.train.precision, "max_length": scorer.max_length}  # fmt: skip
        try:
            kept = Kept(self._scores.kept(step), identity, rank=world.rank, world_size=world.size)
        except EvalError as error:
            self._display.say(f"WARNING: {error}")
            kept = Kept()
        return evaluate_tasks(
            scorer,
            load_codec(config.data.tokenizer),
            tasks,
            policy=policy_of(config.eval),
            kept=kept,
            seed=config.run.seed,
            progress=lambda name, done, total: self._display.evaluating(done, total),
        )
