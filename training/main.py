"""Train: `deepspeed training/main.py --ds_config ds_configs/zero3.json --recipe recipes/….toml [--optim.lr 2e-5 …]`.

Also starts with `python -m training.main`, as one plain process, under torchrun, mpirun and srun.
Exit codes: 0 done, 1 failed, 2 wrong configuration, 85 stopped with everything saved (start it again to continue); all ranks
end with the same one (training/ranks/lifeline.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    import os
    import signal

    def leave_at_once(*_: object) -> None:
        """Nothing can be lost before anything is imported and checked; StopRequest takes over then."""
        os.write(2, b"stopped before the start, nothing was lost; start it again to continue\n")
        os._exit(85)

    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(_number, leave_at_once)

if not __package__:
    # Run by path, sys.path[0] is training/, whose modules would shadow libraries of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import logging
import os
import time
from typing import NoReturn

from data_pipeline.errors import PipelineError
from evals.errors import EvalError
from monteclora.errors import AdapterError
from training.command_line import (
    EXIT_DONE,
    EXIT_PREEMPTED,
    EXIT_WRONG_CONFIGURATION,
    Command,
    Refusal,
    parse_command_line,
)
from training.config import Config
from training.duration import parse_duration
from training.errors import CheckpointError, LossSpikes, ModelError, NonFiniteGradients, StorageError
from training.ranks.lifeline import Lifeline
from training.recipe import ConfigError
from training.record.run_record import RunRecord, open_log
from training.stopping import StopRequest, time_to_stop
from training.watch.display import Display
from training.world import limit_threads

USER_ERRORS = (
    ConfigError,
    PipelineError,
    AdapterError,
    EvalError,
    CheckpointError,
    ModelError,
    NonFiniteGradients,
    LossSpikes,
    StorageError,
)
"""What a user can put right; everything else keeps its traceback."""


def main(arguments: list[str] | None = None) -> int:
    """Check the configuration, then train; return the exit code."""
    started = time.time()
    command = parse_command_line(sys.argv[1:] if arguments is None else arguments, os.environ)
    if isinstance(command, int):
        return command
    world = command.world
    limit_threads(world, os.environ)
    if isinstance(command, Refusal):
        from training.ranks.agreement import tell_the_others

        # Other launchers have ended this rank by now if the first one had problems; srun lets all of them speak.
        is_speaker = world.launcher != "srun" or world.local_rank == 0
        if not tell_the_others(command.problem, world) and is_speaker:
            print(f"\nrank {world.rank}: {command.problem}\n", file=sys.stderr, flush=True)
        return EXIT_WRONG_CONFIGURATION
    config = command.config
    display = Display(label=config.run.dir.name, steps=config.train.steps, is_shown=world.rank == 0)
    record = RunRecord(config.run.dir, world, display.say)
    lifeline = Lifeline(world, record, display)
    stop_at = time_to_stop(started, os.environ, wall_time=config.train.wall_time, stop_before=config.train.stop_before)
    is_first = world.rank == 0
    stop = StopRequest(
        config.run.dir, watches_file=is_first, heeds_earlier=command.goes_on, stop_at=stop_at if is_first else None
    )
    stop.listen(lifeline.stop)
    with contextlib.ExitStack() as on_exit:
        on_exit.callback(lifeline.close)
        on_exit.callback(record.unlock)
        try:
            return run(command, record, display, lifeline, stop, on_exit)
        except BaseException as error:
            return lifeline.fail(error, is_user_error=isinstance(error, (*USER_ERRORS, KeyboardInterrupt)))


def run(
    command: Command,
    record: RunRecord,
    display: Display,
    lifeline: Lifeline,
    stop: StopRequest,
    on_exit: contextlib.ExitStack,
) -> int:
    """One run, from its record to its export; what is put on `on_exit` is closed however it ends."""
    # Imported here: a wrong configuration is answered before torch and DeepSpeed are loaded.
    from training.quiet import quiet_libraries

    quiet_libraries()
    from data_pipeline import load_tokenizer
    from training import placements
    from training.boundary import Boundary
    from training.checkpoint.recorded import first_step
    from training.checkpoint.retention import retention_of
    from training.costs.shape import from_hugging_face
    from training.data import length_of_epoch, open_data
    from training.engine import Engine
    from training.evaluation import Evaluation, check_inputs
    from training.export import export, export_merged
    from training.length import resolve
    from training.loop import Watchers, train
    from training.model.assembly import assemble
    from training.model.build import base_fingerprint, count_parameters, folder_fingerprint
    from training.origin import content_problems, damage, prepare, too_short
    from training.prefetch import StepBatches
    from training.progress import Progress
    from training.ranks.agreement import refuse_disagreement, refuse_problems
    from training.ranks.distributed import from_rank_0, gather, init_distributed, raise_on_all_ranks
    from training.saving import Saver
    from training.watch.meter import Meter
    from training.watch.monitors import Monitors
    from training.watch.profiling import Profiler

    world, problem = command.world, None
    try:
        open_log(command.config.run.dir, world.rank)
        tokenizer = load_tokenizer(command.config.data.tokenizer, command.config.data.tokenizer_engine)
        suites = check_inputs(tokenizer, command.config, display.say)
    except USER_ERRORS as error:
        problem = error
    display.say(f"starting {world.size} rank(s), {method(command.config)}, in {command.config.run.dir}")
    device = init_distributed(world, say=display.say)
    refuse_problems(problem, world)
    limit = command.config.train.hang_timeout
    lifeline.connect(hang_timeout=None if limit is None else parse_duration(limit))
    refuse_disagreement(command.config, command.ds_config, world)
    if not from_rank_0(record.lock, world):
        raise ConfigError([f'run.dir = "{command.config.run.dir}": another start of this run is going on'])
    notes = [line for line in [stop.remove_stale()] if line]
    for line in notes:
        display.say(line)
    ds_config = placements.prepare(command.config, command.ds_config, world, display.say)

    stream = open_data(command.config, world, display.preparing)
    on_exit.enter_context(stream)
    epoch = length_of_epoch(command.config, stream, world)
    rows_per_epoch = epoch["rows"] if epoch else None
    config = resolve(command.config, rows_per_epoch)
    if problems := list(config.length_problems(rows_per_epoch)):
        raise ConfigError([f"{name}: {message}" for name, message in problems])
    origin = from_rank_0(lambda: command.origin, world)
    if origin.kind == "branch" and (too_early := too_short(config, origin.step)):
        raise ConfigError(too_early)
    display.expect(config.train.steps)
    assembly = assemble(config, ds_config, world, device)
    parameters = count_parameters(assembly.model)
    facts = {
        "parameters": parameters,
        "recomputed_layers": assembly.recomputed_layers,
        "kernels": assembly.kernels,
        "epoch": epoch,
        "base_fingerprint": base_fingerprint(config.model, world),
        "init_fingerprint": from_rank_0(lambda: folder_fingerprint(config.adapter.init_from), world),
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "tokenizer_engine": stream.tokenizer.engine,
        "data_fingerprint": stream.fingerprint,
    }
    record.refuse_changes(facts)
    if others := content_problems(origin, facts):
        raise ConfigError(others)
    raise_on_all_ranks(damage(origin, world.rank, world.size), CheckpointError, world)
    for line in from_rank_0(lambda: prepare(origin, config), world):
        display.say(line)
    record.open(command.config, {**facts, **origin.facts}, steps=config.train.steps, job=command.job, notes=notes)
    engine = Engine(assembly, config, ds_config, world, alive=lifeline.at)

    batches = StepBatches(stream, config, rank=world.rank)
    on_exit.enter_context(batches)
    progress = Progress()
    retention = retention_of(config, rows_per_epoch, first_step(origin.facts, config.run.dir / "checkpoints"))
    saver = Saver(engine, batches, config, record, display, retention, lifeline)
    saver.prepare()
    on_exit.callback(saver.close)
    boundary = Boundary(stop, saver, lifeline)
    if saver.resume(progress, origin):
        display.say(f"resuming after step {progress.step} of {config.train.steps}")
    monitors = Monitors(config, rank=world.rank, first_step=progress.step, say=display.say, unwritten=record.unwritten)
    on_exit.callback(monitors.close)
    evaluation = Evaluation(engine, tokenizer, config, display, boundary, monitors, record.unwritten, suites)
    record.cut_metrics(progress.step)
    evaluation.drop_after(progress.step)
    record.update(**progress.as_dict(), data=saver.data_counts(), last_checkpoint=saver.saved_step)
    display.say(f"{parameters['trainable']:,} of {parameters['total']:,} parameters train")
    profiler = Profiler(config.run.dir, config.monitor, world.rank)
    on_exit.callback(profiler.close)
    watchers = Watchers(
        record=record, display=display, lifeline=lifeline, monitors=monitors, profiler=profiler,
        meter=Meter(
            config, from_hugging_face(assembly.model.config.to_dict()), engine.phases,
            device=device, world_size=world.size, recomputed_layers=assembly.recomputed_layers,
        ),
    )  # fmt: skip

    stop.hold()
    lifeline.at("the first step", is_watched=False)
    try:
        with display:
            is_done = train(
                engine,
                batches,
                progress,
                config=config,
                watchers=watchers,
                evaluation=evaluation,
                saver=saver,
                boundary=boundary,
            )
        if is_done and config.checkpoint.export:
            lifeline.at("export", is_watched=False)
            write = export_merged if config.checkpoint.export_merged else export
            display.say(f"exported to {write(engine, tokenizer, config)}")
    finally:
        record.update(**progress.as_dict())
        # What it has to say comes before the cause of a failure.
        monitors.close()
    # Whichever rank was asked.
    reason = next((found for found in gather(stop.reason, world) if found), None)
    if is_done:
        record.finish("done")
        raise_on_all_ranks(record.settle(), StorageError, world)
        display.say(f"done in {progress.seconds:.0f} s of training and {progress.eval_seconds:.0f} s of evaluation")
    else:
        if record.is_writer:
            stop.clear_file()
        record.finish("preempted", stopped_by=reason)
        # The state is saved; a launcher is to start it again even if lines of metrics are missing.
        if missing := record.settle():
            display.say(f"WARNING: {missing}")
        display.say(f"stopped after step {progress.step}, everything saved; start it again to continue")
    engine.close()
    return EXIT_DONE if is_done else EXIT_PREEMPTED


def method(config: Config) -> str:
    """What trains, and with which dropout, in a few words."""
    hidden_key = config.hidden_key
    if not hidden_key.enabled:
        return f"adapter {config.adapter.kind}"
    compensation = hidden_key.compensation if hidden_key.has_compensation else "without compensation"
    return f"adapter {config.adapter.kind}, HiddenKey {compensation}"


def leave(code: int) -> NoReturn:
    """Exit with `code`, once everything is closed and written.

    Where torch was at work the interpreter is not torn down: threads of native libraries can abort that, and the launcher
    would read their signal instead of the code. MPI wants its own end, which comes with the interpreter's, and which waits for
    the other ranks: not after a failure.
    """
    is_mpis_end = "mpi4py.MPI" in sys.modules and code in (EXIT_DONE, EXIT_PREEMPTED)
    if "training.engine" in sys.modules and not is_mpis_end:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            # They may be files on a full disk.
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
