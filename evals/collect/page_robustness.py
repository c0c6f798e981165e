"""The table of how much less the settings matter to one method than to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evals import formatting as fmt

NAMES = {"learned": "learned", "forgotten": "forgotten", "learning_score": "learning score",
         "forgetting_average": "forgetting average"}  # fmt: skip
HEADERS = ("Of", "Rank", "Method", "Worst to best", "Lower by", "Standard deviation lower by", "Best", "Median", "Seeds",
           "Settings")  # fmt: skip
TEXTS = ("Of", "Method")
_READING = """<p class="caption">Pairs of methods at equal rank and base, of all finished runs, whatever the filters; full
finetuning stands beside every rank. A setting is a learning rate and a batch size; its value is the mean over its seeds. Lower
by: the part of the second method's spread that the first does not have, with its 95 % interval from a bootstrap over settings; a
minus means that it spreads more. With few settings, trust that of the standard deviation. Seeds: the standard deviation over
seeds at equal settings. Runs that diverged have no value; their number stands beside the settings.</p>"""


def robustness(reductions: Sequence[Mapping[str, Any]]) -> str:
    """Two lines for each comparison, the method and its reference; nothing where there is none to make."""
    if not reductions:
        return ""
    bases = list(dict.fromkeys(each["base"] for each in reductions))
    rows = []
    for each in reductions:
        of = f"{NAMES[each['metric']]} ({'points' if each['unit'] == 'accuracy' else each['unit']})"
        if len(bases) > 1:
            of += f", base {bases.index(each['base']) + 1}"
        lower = [_lower(each[measure]) for measure in ("range", "std")]
        rows.append([of, each["rank"], *_side(each["method"], each, lower)])
        rows.append(["", "", *_side(each["reference"], each, ["", ""])])
    marks = [' class="text"' if header in TEXTS else "" for header in HEADERS]
    head = "".join(f'<th scope="col"{mark}>{header}</th>' for header, mark in zip(HEADERS, marks, strict=True))
    lines = (zip(row, marks, strict=True) for row in rows)
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{_cell(value)}</td>" for value, mark in line) + "</tr>" for line in lines
    )
    named = f'<p class="caption">Bases: {escape("; ".join(f"{i}: {base}" for i, base in enumerate(bases, 1)))}.</p>'
    return (
        '<details id="robustness"><summary>How much less they matter to one method than to another</summary>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{_READING}'
        f"{named if len(bases) > 1 else ''}</details>"
    )


def _side(side: Mapping[str, Any], entry: Mapping[str, Any], lower: Sequence[str]) -> list[str]:
    is_score = entry["metric"] in ("learning_score", "forgetting_average")

    def number(key: str, is_signed: bool = False) -> str:
        if side[key] is None:
            return fmt.UNKNOWN
        written = fmt.signed(side[key], entry["unit"]).removesuffix(" points")
        return written if is_signed and not is_score else written.removeprefix("+")

    settings = f"{side['n']}" + (f" (and {side['diverged']} diverged)" if side["diverged"] else "")
    places = [number(key, True) for key in ("best", "median")]
    return [side["name"], number("range"), *lower, *places, number("seed_deviation"), settings]


def _lower(found: Mapping[str, Any]) -> str:
    """A reduction in percent with its interval."""
    if found["relative"] is None:
        return fmt.UNKNOWN
    value, low, high = (
        f"{100 * found[key]:.0f}".replace("-", fmt.MINUS) for key in ("relative", "relative_low", "relative_high")
    )
    return f"{value} % ({low} to {high} %)"


def _cell(value: Any) -> str:
    return fmt.UNKNOWN if value is None else escape(str(value))
