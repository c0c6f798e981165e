"""`verify-resume`: prove that kills and other world sizes change no row."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import tyro

from data_pipeline.commands.arguments import Files, Rows, Work, read_request

if TYPE_CHECKING:
    from rich.table import Table

    from data_pipeline.stream.resume_proof import ResumeProof

_STEPS = 25
_SHOWN_MISMATCHES = 10


def verify_resume(
    files: Files,
    work: Work,
    rows: Rows,
    compare: Annotated[
        int | None, tyro.conf.arg(name="rows", metavar="N", help_behavior_hint="(default: 25 steps)")
    ] = None,
    restarts: Annotated[int, tyro.conf.arg(metavar="N")] = 5,
    world_sizes: Annotated[
        tuple[int, ...],
        tyro.conf.arg(metavar="N ...", help_behavior_hint="(default: all up to 8 that divide the rows of a step)"),
    ] = (),
    chance: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
) -> int:
    """Prove that a run that is killed and resumed at other world sizes sees every row.

    Processes are killed (kill -9) at random rows, and go on from the last saved state, as many as chance says. The hash of
    every row is compared with that of a run that was never interrupted. Exits with 1 if any differs.

    In the table, `from` and `saved` are steps, `unsaved` are rows that came after the last save and must come again; `open s` is
    the time to open data and tokenizer, `row 1 s` the time from there over loading the state to the first row.

    $ python -m data_pipeline verify-resume recipes/demo.toml
    $ python -m data_pipeline verify-resume recipes/demo.toml --rows 10000 --restarts 20 --world-sizes 1 2 4

    Args:
        files: What to read where no recipe says it.
        work: How to work.
        rows: Instead of what the recipe says.
        compare: Rows to compare, rounded up to whole steps.
        restarts: How often to kill and resume.
        world_sizes: Numbers of processes to choose from.
        chance: Seed of when to kill, and which world size is next.
    """
    from data_pipeline.commands.opening import open_everything
    from data_pipeline.commands.progress import ProgressReporter
    from data_pipeline.commands.tables import print_table
    from data_pipeline.stream.resume_proof import prove

    request = read_request(files, work, rows)
    # The processes of the proof find what they need made already, and their times are those of a resume.
    open_everything(request.config, work.processes, sys.stderr)
    with ProgressReporter(sys.stderr, unit="rows") as reporter:
        proof = prove(
            request.config,
            num_lanes=request.num_lanes,
            seed=request.seed,
            rows=_STEPS * request.num_lanes if compare is None else compare,
            restarts=restarts,
            world_sizes=world_sizes or None,
            rng_seed=chance,
            progress=reporter.report,
        )
    print(
        f"{request.origin}: {request.num_lanes:,} rows in a step, seed {request.seed}, seq_len {request.config.seq_len:,}"
    )
    print_table(legs_table(proof))
    print("\n".join(verdict(proof)))
    return 0 if proof.holds else 1


def legs_table(proof: ResumeProof) -> Table:
    """A row for each life of the processes: the step it goes on from, its rows, the steps saved in the end, and times."""
    from data_pipeline.commands.tables import table

    made = table(["leg", "ends"], ["ranks", "from", "rows", "unsaved", "saved", "open s", "row 1 s"])
    for number, leg in enumerate(proof.legs, start=1):
        made.add_row(
            f"{number}",
            "killed" if leg.killed else "done",
            f"{leg.world_size}",
            f"{leg.first_step:,}",
            f"{leg.rows:,}",
            f"{leg.unsaved_rows:,}" if leg.killed else "0",
            f"{leg.saved_steps:,}",
            f"{leg.seconds_to_open:.2f}",
            f"{leg.seconds_to_first_row:.3f}",
        )
    return made


def verdict(proof: ResumeProof) -> list[str]:
    """What came of it, in lines."""
    what = (
        f"{proof.rows_compared:,} rows of {proof.restarts + 1} legs compared with the {proof.rows:,} rows of an uninterrupted run, "
        f"in {proof.seconds:.1f} s"
    )
    if proof.holds:
        return [what, "PROVEN: all are the same, none was repeated or lost after a resume"]
    lines = [
        what,
        f"FAILED: {len(proof.mismatches):,} differ, {proof.rows_repeated:,} repeated, {proof.rows_lost:,} lost",
    ]
    lines += [
        f"  leg {mismatch.leg + 1}: row {mismatch.lane} of step {mismatch.row} differs"
        for mismatch in proof.mismatches[:_SHOWN_MISMATCHES]
    ]
    if more := len(proof.mismatches) - _SHOWN_MISMATCHES:
        lines += [f"  and {more:,} more"] if more > 0 else []
    return [*lines, "This is a fault of this software or of the storage (`verify` reads it again): please report it"]
