"""docs/scaling.md: its tables and pictures, from predictions of `launch plan` and from measurements of how cost grows.

`--predict` plans five published models on 8 to 1,024 GPUs and sets published trainings beside what the plan says of them: minutes, and the
same on every machine. `--measure` measures growth on this machine, some minutes per area. Each writes its JSON to
results/ and renews docs/scaling.md between its markers, `<!-- begin: NAME -->` and `<!-- end: NAME -->`; without either, the page and its pictures
are made from the JSON there is.

    python benchmarks/scaling.py [--predict] [--measure [AREA ...]] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import scaling_growth, scaling_pictures, scaling_predictions  # noqa: E402
from benchmarks.claims import RESULTS, ROOT, keep, write_json  # noqa: E402
from benchmarks.scaling_tables import sections  # noqa: E402

PAGE = ROOT / "docs" / "scaling.md"
PREDICTIONS, GROWTH = RESULTS / "scaling_predictions.json", RESULTS / "scaling.json"


def predict() -> dict[str, Any]:
    """All that is computed."""
    compared = scaling_predictions.comparison()
    return {
        "schema": 1, "predictions": scaling_predictions.predictions(), "networks": scaling_predictions.slower_networks(),
        "comparison": compared, "groups": scaling_predictions.error_groups(compared),
        "weak_scaling": scaling_predictions.weak_scaling(),
        "checked": scaling_predictions.checked(RESULTS / "memory_model.json"),
    }  # fmt: skip


def measure(areas: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """The growth of these areas, with when they were measured."""
    found = []
    with tempfile.TemporaryDirectory(prefix="scaling.", dir=folder) as place:
        for each in scaling_growth.measure(areas, Path(place)):
            slopes = ", ".join(
                f"{name} {'-' if value is None else f'{value:.2f}'}"
                for name, value in (("slope", each.slope), ("last", each.last), ("expected", each.expected))
            )
            values = ", ".join(f"{value:.4g}" for value in each.values)
            print(f"{each.area}: {each.figure}, by {each.size}: {values}  {slopes}", flush=True)
            date = datetime.now(UTC).isoformat(timespec="seconds")
            found.append(dataclasses.asdict(each) | {"slope": each.slope, "last": each.last, "date": date})
    return found


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured, with the areas of `new` in the place of their old ones, in the order of AREAS."""
    again = {each["area"] for each in new}
    kept = [*new, *(each for each in old if each["area"] not in again)]
    order = list(scaling_growth.AREAS)
    return sorted((each for each in kept if each["area"] in order), key=lambda each: order.index(each["area"]))


def renewed(page: str, contents: dict[str, list[str]]) -> str:
    """The page with these lines between its markers.

    Raises:
        ValueError: a section has no place in the page, or the page has one for a section that there is not.
    """
    places = re.findall(r"<!-- begin: (\w+) -->\n.*?<!-- end: \1 -->", page, flags=re.DOTALL)
    if sorted(places) != sorted(contents):
        raise ValueError(
            f"the page has places for {', '.join(sorted(places))}, and there is {', '.join(sorted(contents))}"
        )
    for name, lines in contents.items():
        begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
        before, rest = page.split(begin)
        page = before + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.split(end, 1)[1]
    return page


def main() -> None:
    """Predict, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="plan and compare anew")
    parser.add_argument(
        "--measure", nargs="*", choices=list(scaling_growth.AREAS), metavar="AREA",
        help=f"measure growth anew, of all areas or of some: {', '.join(scaling_growth.AREAS)}",
    )  # fmt: skip
    parser.add_argument(
        "--dir", type=Path, help="folder on a disk, for 2 GB of files; $TMPDIR or /var/tmp unless given"
    )
    asked = parser.parse_args()
    if asked.predict:
        keep(PREDICTIONS, predict())
    if asked.measure is not None:
        folder = asked.dir or Path(os.environ.get("TMPDIR", "/var/tmp"))
        new = measure(asked.measure or list(scaling_growth.AREAS), folder)
        old = json.loads(GROWTH.read_text())["growth"] if GROWTH.exists() else []
        write_json(GROWTH, "full", {"growth": merged(old, new), "claims": []})
    predicted, measured = (json.loads(path.read_text()) for path in (PREDICTIONS, GROWTH))
    if missing := set(scaling_growth.AREAS) - {each["area"] for each in measured["growth"]}:
        print(
            f"the page is not written: {', '.join(sorted(missing))} not measured yet (--measure {' '.join(sorted(missing))})"
        )
        return
    PAGE.write_text(renewed(PAGE.read_text(), sections(predicted, measured["growth"])))
    scaling_pictures.draw_hours(predicted["predictions"], PAGE.with_name("scaling_hours.png"))
    scaling_pictures.draw_growth(measured["growth"], PAGE.with_name("scaling_growth.png"))


if __name__ == "__main__":
    main()
