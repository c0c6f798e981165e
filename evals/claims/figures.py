"""The document's figures: learned and forgotten along budgets, differences, spreads, and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evals.claims.findings import Finding
from evals.claims.rank_growth import by_module
from evals.claims.result import Result
from evals.claims.roles import (
    DECAY,
    DROPOUT,
    FULL,
    FULL_HIDDEN_KEY,
    HIDDEN_KEY,
    LORA,
    MONTECLORA,
    MONTECLORA_HIDDEN_KEY,
    Arm,
)
from evals.claims.selection import Choice
from evals.claims.study import FORGOTTEN, LEARNED, Panel, StudyRun
from evals.report.plots import INK, KIND_COLORS, OTHER_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    FULL: KIND_COLORS["none"],
    LORA: KIND_COLORS["lora"],
    MONTECLORA: KIND_COLORS["monteclora"],
    HIDDEN_KEY: OTHER_COLORS[0],
    DECAY: OTHER_COLORS[1],
    DROPOUT: OTHER_COLORS[2],
    FULL_HIDDEN_KEY: OTHER_COLORS[3],
    MONTECLORA_HIDDEN_KEY: OTHER_COLORS[3],
}
"""Of a role, as on collect's page."""
LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""Line and marker of an arm's place among those of its role: ranks and variants are told apart by them."""
LEGEND_MARK, LEGEND_LETTER = 0.6, 0.085
"""Inches that a line's sample and a letter of its label take."""
STYLE: Any = {"font.size": 10, "font.family": ["DejaVu Sans"], "axes.spines.top": False, "axes.spines.right": False}
CURVES = {
    1: ("learns_less", "learned by full finetuning \N{MINUS SIGN} by LoRA"),
    2: ("forgets_less", "forgotten by full finetuning \N{MINUS SIGN} by LoRA"),
    3: ("regularises", "forgotten by full + x \N{MINUS SIGN} by LoRA"),
    6: ("hidden_key", "learned with HiddenKey \N{MINUS SIGN} without"),
}
"""Claim -> name of the figure of its differences over budgets, and what they are."""


class Drawn(NamedTuple):
    """A figure: the claim it belongs to (0: all), its file's name without suffix, what it shows, and itself."""

    claim: int
    name: str
    caption: str
    figure: Figure


def draw(result: Result) -> Iterator[Drawn]:
    """All figures that the study has the numbers for."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        panels = [panel for panel in result.study.panels if result.choices[panel.name]]
        yield Drawn(
            0,
            "learned_forgotten",
            "Learned and forgotten along the budgets: a line with markers is a method at its best learning rate, the mean over seeds, "
            "from the model before training at (0, 0); small points are the seeds at the largest budget; a faint line is the same method at "
            "another learning rate, some of which leave the frame.",
            _learned_forgotten(panels, result.choices),
        )
        for claim, each in result.answers:
            if claim.number in CURVES and any(len(f.curve) > 0 for f in each.findings):
                name, label = CURVES[claim.number]
                yield Drawn(
                    claim.number,
                    name,
                    f"Claim {claim.number}: {label}, over budgets, with 95 % intervals; above zero is the claim's side.",
                    _differences([f for f in each.findings if f.curve], label),
                )
        spread = [f for claim, each in result.answers if claim.number == 5 for f in each.findings]
        if spread:
            shown = [panel for panel in panels if panel.name in {f.panel for f in spread}]
            yield Drawn(
                5,
                "learning_rates",
                "Learned at every learning rate: points are runs, lines the means over seeds; a cross at the bottom is a run that "
                "diverged.",
                _learning_rates(shown),
            )
        ranked = [f for claim, each in result.answers if claim.number == 4 for f in each.findings]
        if ranked:
            shown = [panel for panel in panels if panel.name in {f.panel for f in ranked}]
            yield Drawn(
                4,
                "ranks",
                "Rank of the weight change of full finetuning by module, mean over layers and seeds; dashed are LoRA's ranks, "
                "grey the rank that the smallest matrix could have.",
                _ranks(shown, ranked),
            )


def _learned_forgotten(panels: Sequence[Panel], choices: Mapping[str, Sequence[Choice]]) -> Figure:
    figure, axes = _panels(len(panels), 4.6, 3.9)
    looks = _looks(panels)
    for axis, panel in zip(axes, panels, strict=True):
        for choice in choices[panel.name]:
            color, line, marker = looks[choice.arm]
            cells = panel.cells(choice.arm)
            runs = [cells[choice.lr, seed] for seed in choice.seeds]
            axis.plot(
                *_along_budgets(panel, choice.arm, runs), line, color=color, marker=marker, ms=4, lw=1.4,
                label=choice.arm.label,
            )  # fmt: skip
            for run in runs:
                x, y = (panel.score(run, effect, choice.tokens) for effect in (FORGOTTEN, LEARNED))
                if x is not None and y is not None:
                    axis.plot(x, y, marker, color=color, ms=3, alpha=0.5, mew=0)
        # The frame is that of the best rates: a rate that is far too high would leave no room for them.
        axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
        for choice in choices[panel.name]:
            color, line, _ = looks[choice.arm]
            cells = panel.cells(choice.arm)
            for lr in sorted({lr for lr, _ in cells} - {choice.lr}):
                others = [run for (rate, _), run in cells.items() if rate == lr]
                axis.plot(*_along_budgets(panel, choice.arm, others), line, color=color, lw=1, alpha=0.45)
        axis.axvline(0, color=INK, lw=0.8, alpha=0.35)
        axis.axhline(0, color=INK, lw=0.8, alpha=0.35)
        axis.set_title(f"{panel.name} ({panel.kind})", loc="left", fontsize=10)
        axis.set_xlabel(f"forgotten ({panel.measures[FORGOTTEN].unit})")
        axis.set_ylabel(f"learned ({panel.measures[LEARNED].unit})")
    _legend(figure, axes)
    return figure


def _along_budgets(panel: Panel, arm: Arm, runs: Sequence[StudyRun]) -> tuple[list[float], list[float]]:
    """What runs forgot and learned on their mean, from (0, 0) on; budgets that one of them was not scored at are left out."""
    points = [(0.0, 0.0)]
    for tokens in panel.budgets(arm):
        x, y = (_mean([panel.score(run, effect, tokens) for run in runs]) for effect in (FORGOTTEN, LEARNED))
        if x is not None and y is not None:
            points.append((x, y))
    return [x for x, _ in points], [y for _, y in points]


def _differences(findings: Sequence[Finding], label: str) -> Figure:
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.panel, finding.what, finding.against), []).append(finding)
    figure, axes = _panels(len(groups), 4.6, 3.2)
    order = list(dict.fromkeys(f.method for f in findings))
    role_color = COLORS[HIDDEN_KEY if findings[0].claim == 6 else LORA]
    for axis, ((panel, _, against), group) in zip(axes, groups.items(), strict=True):
        for finding in group:
            place = order.index(finding.method)
            budgets = sorted(finding.curve)
            found = [finding.curve[tokens] for tokens in budgets]
            # Side by side, so that intervals of several ranks show.
            x = np.array(budgets) * 1.05 ** (place - (len(order) - 1) / 2)
            y = np.array([each.value for each in found])
            arms = np.array([[each.value - each.low, each.high - each.value] for each in found]).T
            line, marker = LOOKS[place % len(LOOKS)]
            color = _shade(role_color, place, len(order))
            axis.errorbar(x, y, yerr=np.nan_to_num(arms), fmt=line + marker, color=color, ms=4, lw=1.2, capsize=2,
                          label=finding.method)  # fmt: skip
        axis.axhline(0, color=INK, lw=0.9, alpha=0.6)
        axis.set_xscale("log")
        _ticks(axis, sorted({tokens for finding in group for tokens in finding.curve}))
        several = len({each for each_panel, _, each in groups if each_panel == panel}) > 1
        axis.set_title(f"{panel}, x = {against.removeprefix('full + ')}" if several else panel, loc="left", fontsize=10)
        axis.set_xlabel("tokens trained on")
        axis.set_ylabel(f"{label}\n({group[0].unit})", fontsize=9)
    _legend(figure, axes)
    return figure


def _learning_rates(panels: Sequence[Panel]) -> Figure:
    figure, axes = _panels(len(panels), 4.6, 3.6)
    looks = _looks(panels)
    for axis, panel in zip(axes, panels, strict=True):
        for arm in panel.of(LORA, MONTECLORA):
            color, line, marker = looks[arm]
            budgets = panel.budgets(arm)
            by_rate: dict[float, list[float]] = {}
            for (lr, _), run in panel.cells(arm).items():
                score = panel.score(run, LEARNED, budgets[-1]) if budgets else None
                if score is not None:
                    by_rate.setdefault(lr, []).append(score)
                    axis.plot(lr, score, marker, color=color, ms=3, alpha=0.5, mew=0)
                elif run.is_diverged:
                    axis.plot(lr, 0.03, "x", color=color, ms=6, transform=axis.get_xaxis_transform(), clip_on=False)
            rates = sorted(by_rate)
            means = [float(np.mean(by_rate[lr])) for lr in rates]
            axis.plot(rates, means, line, marker=marker, ms=4, color=color, lw=1.4, label=arm.label)
        axis.set_xscale("log")
        rates = sorted({run.lr for run in panel.runs if run.arm.role in (LORA, MONTECLORA)})
        axis.set_xticks(rates, [f"{lr:g}" for lr in rates])
        axis.minorticks_off()
        axis.set_title(panel.name, loc="left", fontsize=10)
        axis.set_xlabel("learning rate")
        axis.set_ylabel(f"learned ({panel.measures[LEARNED].unit})")
    _legend(figure, axes)
    return figure


def _ranks(panels: Sequence[Panel], findings: Sequence[Finding]) -> Figure:
    figure, axes = _panels(len(panels), 4.6, 3.6)
    for axis, panel in zip(axes, panels, strict=True):
        own = [f for f in findings if f.panel == panel.name]
        runs = [run for run in panel.runs if run.arm.role == FULL and run.ranks and run.lr == own[0].details["lr"]]
        steps = sorted(set.intersection(*(set(run.ranks) for run in runs)))
        modules = list(by_module(runs[0].ranks[steps[0]]))
        most = min(full for _, full in by_module(runs[0].ranks[steps[-1]]).values())
        for place, module in enumerate(modules):
            means = [float(np.mean([by_module(run.ranks[t])[module][0] for run in runs])) for t in steps]
            axis.plot(steps, means, "-", marker=("o", "s", "^", "D", "v", "P", "X")[place % 7], ms=4, lw=1.2,
                      color=f"C{place}", label=module)  # fmt: skip
        for rank in sorted({f.rank for f in own if f.rank}):
            axis.axhline(rank, color=INK, lw=0.9, ls="--", alpha=0.6)
            axis.annotate(
                f"r{rank}", (0.995, rank), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
            )
        axis.axhline(most, color=INK, lw=2, alpha=0.25)
        axis.set_xscale("log")
        _ticks(axis, steps)
        axis.set_ylim(bottom=0)
        axis.set_title(panel.name, loc="left", fontsize=10)
        axis.set_xlabel("tokens trained on")
        axis.set_ylabel("rank of the change")
    _legend(figure, axes)
    return figure


def _looks(panels: Sequence[Panel]) -> dict[Arm, tuple[str, str, str]]:
    """Arm -> colour, line and marker, the same in all panels."""
    arms = sorted({arm for panel in panels for arm in panel.arms})
    looks = {}
    for arm in arms:
        alike = [other for other in arms if other.role == arm.role]
        place = alike.index(arm)
        looks[arm] = (_shade(COLORS[arm.role], place, len(alike)), *LOOKS[place % len(LOOKS)])
    return looks


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a seed's was not measured."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _shade(color: str, place: int, number: int) -> str:
    """A role's colour, lighter for the lower of its ranks."""
    from matplotlib.colors import to_hex, to_rgb

    white = 0.5 * (1 - (place + 1) / number)
    return str(to_hex([(1 - white) * channel + white for channel in to_rgb(color)]))


def _panels(number: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(number, 2)
    rows = -(-number // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.7), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[number:]:
        spare.set_visible(False)
    for axis in axes[:number]:
        axis.grid(color=INK, alpha=0.1, lw=0.8)
    return figure, axes[:number]


def _ticks(axis: Axes, budgets: Sequence[int]) -> None:
    from evals.formatting import count

    shown = budgets if len(budgets) <= 6 else budgets[:: -(-len(budgets) // 6)]
    axis.set_xticks(shown, [count(tokens).replace(" ", "") for tokens in shown])
    axis.minorticks_off()


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    widest = LEGEND_MARK + LEGEND_LETTER * max(map(len, handles), default=0)
    columns = max(1, min(4, len(handles), int(figure.get_figwidth() / widest)))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
