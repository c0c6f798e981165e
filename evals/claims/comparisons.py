"""Two methods beside each other, each at its best learning rate: at equal budgets, and at equal learning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from evals.claims.estimates import Floats, Measured, measure
from evals.claims.findings import Finding
from evals.claims.roles import NAMES, Arm
from evals.claims.selection import Choice, choose, crossfitted, plain
from evals.claims.study import FORGOTTEN, LEARNED, Panel

EQUAL_LEARNING = "forgotten at equal learning"
LEVELS = (1.0, 0.75, 0.5, 0.25)
"""Shares of the most that both methods have learned; at the first the comparison decides, the others show how much hangs on it."""
Score = Callable[[Panel, Choice, int, str, int], Floats | None]


def difference(panel: Panel, claim: int, method: Arm, reference: Arm, effect: str, sign: int) -> Finding | str:
    """The sign times (method - reference) in what was learned or forgotten, paired by seed and document.

    Returns:
        The finding, cross-fitted; or a sentence why there is none.
    """
    choices = choose(panel, method), choose(panel, reference)
    if choices[0] is None or choices[1] is None:
        return f"{panel.name}: no run of {(method if choices[0] is None else reference).label} was scored"
    pair = choices[0], choices[1]
    curves = {
        score: {t: found for t in _common_budgets(panel, pair) if (found := _at(panel, pair, effect, t, sign, score))}
        for score in (crossfitted, plain)
    }
    if not curves[crossfitted]:
        return f"{panel.name}: {method.label} and {reference.label} have no seed and budget in common"
    tokens = max(curves[crossfitted])
    one, other = (_mean_score(panel, choice, effect, tokens) for choice in pair)
    return Finding(
        claim=claim, panel=panel.name, what=effect, method=method.label, reference=reference.label,
        against=NAMES[reference.role], rank=method.rank, unit=panel.measures[effect].unit, tokens=tokens, measured=curves[crossfitted][tokens],
        plain=curves[plain].get(tokens), curve=curves[crossfitted],
        details={"of_method": one, "of_reference": other, "lr": pair[0].lr, "lr_reference": pair[1].lr,
                 "train_loss_of_method": _train_loss(panel, pair[0]), "train_loss_of_reference": _train_loss(panel, pair[1]),
                 "documents": panel.measures[effect].units},
    )  # fmt: skip


def at_equal_learning(panel: Panel, claim: int, method: Arm, reference: Arm) -> Finding | str:
    """What the reference forgot minus what the method forgot, where both have learned as much.

    A run's budgets make a curve from (0, 0), the model before training, over what was learned and forgotten. The level is the
    most that both methods reach with any rate that could be chosen; what was forgotten there is interpolated linearly on the
    first stretch of the curve that reaches it. A seed's curve is that of the rate which on the other seeds' mean reaches the
    level and forgot least there. In every draw of seeds and documents, and for every seed, curves and level are made anew.
    At its own most a method has no choice of rate left, and the other has: so the same is made at LEVELS below, too.

    Returns:
        The finding, beside it the one with each method at the rate that learned most and those at lower levels; or a sentence
        why there is none.
    """
    choices = choose(panel, method), choose(panel, reference)
    if choices[0] is None or choices[1] is None:
        return f"{panel.name}: no run of {(method if choices[0] is None else reference).label} was scored"
    pair = choices[0], choices[1]
    seeds = sorted(set.intersection(*(set(choice.scored[lr]) for choice in pair for lr in choice.scores)))
    budgets = [_complete_budgets(panel, choice, seeds) for choice in pair]
    if not all(budgets):
        return f"{panel.name}: {method.label} and {reference.label} have no seed in common at every learning rate, scored at a budget"
    known = [_curves(panel, choice, seeds, each) for choice, each in zip(pair, budgets, strict=True)]
    level = min(max(float(each[0, 0].mean(axis=0).max()) for each in rates.values()) for rates in known)
    if level <= 0:
        return f"{panel.name}: {method.label} or {reference.label} has learned nothing, so nothing compares at equal learning"
    units = min(panel.measures[effect].units for effect in (LEARNED, FORGOTTEN))

    def at(share: float, chosen: list[list[float]]) -> Measured:
        series = (each for rates, lrs in zip(known, chosen, strict=True) for each in _by_seed(rates, lrs))
        return measure(partial(_forgotten_at_common_level, share=share), *series, units=units)

    chosen = {share: [forgetting_least(rates, share * level) for rates in known] for share in LEVELS}
    levels = {share: at(share, lrs) for share, lrs in chosen.items()}
    least = chosen[1.0]
    means = [_by_seed(rates, lrs)[0][0].mean(axis=0) for rates, lrs in zip(known, least, strict=True)]
    reached = np.array([min(float(mean.max()) for mean in means)])
    tokens = [
        round(float(interpolate(mean[None], np.array([each], dtype=np.float64), reached)[0]))
        for mean, each in zip(means, budgets, strict=True)
    ]
    return Finding(
        claim=claim, panel=panel.name, what=EQUAL_LEARNING, method=method.label, reference=reference.label,
        against=NAMES[reference.role], rank=method.rank, unit=panel.measures[FORGOTTEN].unit, tokens=max(choice.tokens for choice in pair),
        measured=levels[1.0], plain=at(1.0, [[choice.lr] * len(seeds) for choice in pair]),
        levels=levels,
        details={"level": float(reached[0]), "tokens_at_level": tokens[0], "tokens_at_level_reference": tokens[1],
                 "lr": sorted(set(least[0])), "lr_reference": sorted(set(least[1])), "documents": units},
    )  # fmt: skip


def forgetting_least(rates: Mapping[float, Floats], level: float) -> list[float]:
    """Of each seed, the rate which on the other seeds' mean forgot least at a level of learning.

    Args:
        rates: rate -> what was learned and forgotten, [2, 1 + draws, seeds, budgets]; the first of a draw has all documents.
        level: of learning.

    Returns:
        [seeds] rates; where none reaches the level on the other seeds, the one that learned most there. A single seed is its
        own other.
    """
    seeds = range(next(iter(rates.values())).shape[2])
    found = []
    for seed in seeds:
        others = [other for other in seeds if other != seed] or [seed]
        means = {lr: each[:, :1, others].mean(axis=2) for lr, each in rates.items()}
        forgotten = {
            lr: float(interpolate(mean[0], mean[1], np.array([level]))[0])
            for lr, mean in means.items()
            if mean[0].max() >= level
        }
        found.append(
            min(forgotten, key=lambda lr: forgotten[lr]) if forgotten else max(means, key=lambda lr: means[lr][0].max())
        )
    return found


def _complete_budgets(panel: Panel, choice: Choice, seeds: list[int]) -> list[int]:
    """Budgets at which the runs of these seeds were scored at every rate that could be chosen."""
    cells = panel.cells(choice.arm)
    runs = [cells[lr, seed] for lr in choice.scores for seed in seeds]
    return [
        tokens
        for tokens in panel.budgets(choice.arm)
        if runs and all(panel.score(run, effect, tokens) is not None for run in runs for effect in (LEARNED, FORGOTTEN))
    ]


def _curves(panel: Panel, choice: Choice, seeds: list[int], budgets: list[int]) -> dict[float, Floats]:
    """Rate that could be chosen -> what was learned and forgotten, [2, 1 + draws, seeds, budgets]."""
    cells, effects = panel.cells(choice.arm), (LEARNED, FORGOTTEN)
    return {
        lr: np.moveaxis(
            np.array([[[panel.replicates(cells[lr, s], e, t) for t in budgets] for s in seeds] for e in effects]), -1, 1
        )
        for lr in choice.scores
    }


def _by_seed(rates: Mapping[float, Floats], chosen: list[float]) -> tuple[Floats, Floats]:
    """What was learned and what was forgotten with each seed's rate, [1 + draws, seeds, budgets] both."""
    learned, forgotten = np.stack([rates[lr][:, :, seed] for seed, lr in enumerate(chosen)], axis=2)
    return learned, forgotten


def best_choices(panel: Panel, arms: Iterable[Arm]) -> list[Choice]:
    """The chosen learning rates of some arms, those without a scored run left out."""
    return [choice for arm in arms if (choice := choose(panel, arm)) is not None]


def optimism(panel: Panel, choice: Choice) -> float | None:
    """How much better the chosen rate's score of learning is than the cross-fitted one; None where not measured."""
    pairs = [[score(panel, choice, s, LEARNED, choice.tokens) for score in (plain, crossfitted)] for s in choice.seeds]
    known = [float(a[0] - b[0]) for a, b in pairs if a is not None and b is not None]
    return float(np.mean(known)) if known else None


def _forgotten_at_common_level(
    learned: Floats, forgotten: Floats, learned_ref: Floats, forgotten_ref: Floats, *, share: float
) -> Floats:
    """[m, budgets] each -> [m]; at this share of the most that both have learned."""
    level = share * np.minimum(learned.max(axis=1), learned_ref.max(axis=1))
    found = interpolate(learned_ref, forgotten_ref, level) - interpolate(learned, forgotten, level)
    return np.where(level > 0, found, np.nan)


def interpolate(learned: Floats, forgotten: Floats, level: Floats) -> Floats:
    """What was forgotten where a curve from (0, 0) first reaches a level of learning.

    Args:
        learned: [m, budgets].
        forgotten: [m, budgets]; or what else grows along the curve, such as tokens.
        level: [m], above 0 and at most the largest of `learned`.

    Returns:
        [m].
    """
    zero = np.zeros((len(learned), 1))
    x, y = np.concatenate([zero, learned], axis=1), np.concatenate([zero, forgotten], axis=1)
    rows = np.arange(len(x))
    # The first budget that reaches the level; the point before it is below.
    place = np.maximum(np.argmax(x >= level[:, None], axis=1), 1)
    left, right = x[rows, place - 1], x[rows, place]
    share = np.divide(level - left, right - left, out=np.ones_like(level), where=right != left)
    return np.asarray(y[rows, place - 1] + share * (y[rows, place] - y[rows, place - 1]))


def _at(
    panel: Panel, pair: tuple[Choice, Choice], effect: str, tokens: int, sign: int, score: Score
) -> Measured | None:
    seeds = [s for s in _common_seeds(pair) if all(score(panel, c, s, effect, tokens) is not None for c in pair)]
    series = [_series(panel, choice, seeds, effect, tokens, score) for choice in pair]
    if not seeds or series[0] is None or series[1] is None:
        return None
    return measure(lambda a, b: sign * (a - b), series[0], series[1], units=panel.measures[effect].units)


def _series(panel: Panel, choice: Choice, seeds: list[int], effect: str, tokens: int, score: Score) -> Floats | None:
    """[1 + draws, seeds]; None where a seed's was not measured."""
    found = [score(panel, choice, seed, effect, tokens) for seed in seeds]
    known = [each for each in found if each is not None]
    return np.stack(known, axis=1) if known and len(known) == len(found) else None


def _common_seeds(pair: tuple[Choice, Choice]) -> list[int]:
    return sorted(set(pair[0].seeds) & set(pair[1].seeds))


def _common_budgets(panel: Panel, pair: tuple[Choice, Choice]) -> list[int]:
    return sorted(set(panel.budgets(pair[0].arm)) & set(panel.budgets(pair[1].arm)))


def _mean_score(panel: Panel, choice: Choice, effect: str, tokens: int) -> float | None:
    known = [found[0] for s in choice.seeds if (found := plain(panel, choice, s, effect, tokens)) is not None]
    return float(np.mean(known)) if known else None


def _train_loss(panel: Panel, choice: Choice) -> float | None:
    cells = panel.cells(choice.arm)
    known = [loss for s in choice.seeds if (loss := cells[choice.lr, s].train_loss) is not None]
    return float(np.mean(known)) if known else None
