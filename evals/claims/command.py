"""`python -m evals claims`: read the runs, measure the claims, write document, figures and numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evals.claims.document import markdown, notes_of, outdated
from evals.claims.figures import draw
from evals.claims.reasons import verdicts
from evals.claims.result import Result, as_json, evaluate
from evals.claims.study import read_study
from evals.collect.rounding import rounded
from evals.collect.table import write_text
from evals.collect.walk import RECORDS, SWEEP
from evals.errors import EvalError
from evals.outputs import check_place
from evals.report.plots import save
from evals.results import write_json


def run_claims(roots: Sequence[Path], out: Path) -> Result:
    """Write OUT.md, and OUT/claims.json and OUT/*.svg beside it.

    Raises:
        EvalError: nothing can be compared, `out` is no Markdown file of this command, its folder is one of runs, or storage
            takes nothing.
    """
    if out.suffix != ".md":
        raise EvalError(f"--out {out}: the document is Markdown; name a file that ends in .md")
    check_place(out)
    folder = out.with_suffix("")
    if any(root.resolve().is_relative_to(folder.resolve()) for root in roots) or _holds_runs(folder):
        raise EvalError(f"--out {out}: its figures would go among the runs in {folder}; name another file")
    try:
        before = out.read_text(encoding="utf-8") if out.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"--out {out}: cannot be read as text in UTF-8; name another file") from error
    notes = notes_of(before, str(out))
    try:
        result = evaluate(read_study(roots))
    except OSError as error:
        raise EvalError(f"{error.filename}: cannot be read ({error.strerror}); try again") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = list(draw(result))
        for figure in figures:
            save(figure.figure, folder / f"{figure.name}.svg")
        write_json(folder / "claims.json", rounded(as_json(result)))
        text = markdown(result, figures, folder=folder.name, command=_command(roots, out), notes=notes)
        write_text(out, text)
        for section in outdated(result, notes):
            print(
                f'warning: {out}: the note in "{section}" was written when the verdicts were others; once it is true again, take '
                '", for …" out of its marker',
                file=sys.stderr,
            )
    except OSError as error:
        raise EvalError(
            f"{error.filename or out}: cannot be written ({error.strerror}); name another file with --out"
        ) from error
    return result


def _holds_runs(folder: Path) -> bool:
    """Whether a run or a sweep is in a folder, itself included."""
    return any(path.name in (*RECORDS, SWEEP) for path in folder.rglob("*.json*"))


def summary(result: Result) -> list[str]:
    """A line per claim for the terminal."""
    lines = []
    for claim, found in result.answers:
        lines.append(f"{claim.number}. {claim.text}")
        groups: dict[tuple[str, str, str], list] = {}
        for f in found.findings:
            groups.setdefault((f.panel, f.what, f.against), []).append(f)
        lines += [
            f"   {panel}, {what}, against {against}: {verdicts(of).replace('**', '')}"
            for (panel, what, against), of in groups.items()
        ]
        lines += [f"   {missing}" for missing in found.missing]
    return lines


def _command(roots: Sequence[Path], out: Path) -> str:
    """The command without the folders of this machine: relative to the working directory, or the last name alone."""
    here = Path.cwd()
    shown = [
        str(path.relative_to(here)) if path.is_relative_to(here) else path.name if path.is_absolute() else str(path)
        for path in (*roots, out)
    ]
    return f"python -m evals claims {' '.join(shown[:-1])} --out {shown[-1]}"
