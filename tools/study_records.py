"""Keep what the runs of a study have recorded, without their weights: all that its verdicts come from, in one small file.

    python tools/study_records.py runs/study_tiny docs/study/records.tar.xz

It holds run.json, metrics, scores of every document, and the ranks of changes. Where it was unpacked, `python -m evals claims`
and `python -m evals collect` find what they found in the runs themselves.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

KEPT = ("run.json", "sweep.json", "metrics.jsonl", "evals/*.json", "weights/rank-*.json")


def main(arguments: list[str] | None = None) -> int:
    """Pack one study; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the study, such as runs/study_tiny")
    parser.add_argument("out", type=Path, help="the archive to write, such as records.tar.xz")
    options = parser.parse_args(arguments)
    study = options.study.resolve()
    found = sorted(records(study))
    if not found:
        print(f"{options.study}: there is no run below it", file=sys.stderr)
        return 2
    pack(study, found, options.out)
    print(f"{options.out}: {len(found)} files, {options.out.stat().st_size:,} bytes")
    return 0


def records(study: Path) -> Iterator[Path]:
    """Every record below the folder of a study."""
    for path in study.rglob("*.json*"):
        if path.is_file() and any(path.match(pattern) for pattern in KEPT):
            yield path


def pack(study: Path, files: list[Path], out: Path) -> None:
    """Write the archive: the same bytes for the same records.

    Paths in them are made relative to the folder that has runs/ (two above the study), so that nothing is left of where it ran.
    """
    here = f"{study.parents[1]}/"
    with tarfile.open(out, "w:xz", preset=9) as archive:
        for path in files:
            content = path.read_text(encoding="utf-8").replace(here, "").encode()
            entry = tarfile.TarInfo(str(path.relative_to(study.parent)))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    sys.exit(main())
