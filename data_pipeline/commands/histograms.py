"""The lengths of documents as pictures: bars of characters for a terminal, a PNG for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.commands.formatting import format_share

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FEW_BINS = 8
_INCHES_WIDE, _INCHES_PER_SOURCE = 8.0, 2.4


class Bin(NamedTuple):
    """Documents whose length is from `low` to `high`, both included."""

    low: int
    high: int
    documents: int
    tokens: int


def length_bins(lengths: NDArray[np.int32]) -> list[Bin]:
    """Count lengths above 0 in bins that grow by 2, or by its root where those would be few; from the shortest to the longest."""
    lengths = lengths[lengths > 0]
    if len(lengths) == 0:
        return []
    shortest, longest = int(lengths.min()), int(lengths.max())
    edges = _edges(shortest, longest, 1)
    if len(edges) <= _FEW_BINS:
        edges = _edges(shortest, longest, 2)
    counts, _ = np.histogram(lengths, bins=edges)
    tokens, _ = np.histogram(lengths, bins=edges, weights=lengths.astype(np.int64))
    # The last edge belongs to no length, so that numpy's closed last bin is as the others.
    return [
        Bin(low, high - 1, int(count), int(total))
        for low, high, count, total in zip(edges, edges[1:], counts, tokens, strict=False)
    ]


def draw_bars(bins: list[Bin], *, width: int, seq_len: int) -> list[str]:
    """Lines of a histogram: range of lengths, bar, documents, their share and that of their tokens; and where seq_len lies.

    Args:
        bins: what to draw.
        width: columns there are.
        seq_len: drawn as a line.
    """
    if not bins:
        return []
    documents, tokens = sum(one.documents for one in bins), sum(one.tokens for one in bins)
    digits = len(f"{bins[-1].high:,}")
    counts = max(len("documents"), len(f"{documents:,}"))
    room = max(width - 2 * digits - counts - 28, 8)
    most = max(one.documents for one in bins)
    margin = " " * (2 * digits + 3)
    lines = [f"{'tokens':>{2 * digits + 3}} │{'':{room}} {'documents':>{counts}}  of all  of tokens"]
    is_marked = False
    for one in bins:
        if not is_marked and one.low > seq_len:
            lines.append(f"{margin} ├{f'╴seq_len {seq_len:,} ':╌<{room}}")
            is_marked = True
        lines.append(
            f"{one.low:>{digits},} – {one.high:>{digits},} │{_bar(one.documents / most, room)} {one.documents:>{counts},}"
            f"{format_share(one.documents / documents):>8}{format_share(one.tokens / tokens):>11}"
        )
    return lines


def save_picture(path: Path, lengths: Mapping[str, NDArray[np.int32]], *, seq_len: int, is_estimate: bool) -> None:
    """Write a PNG (or what the name says: .svg, .pdf): for each source a histogram, with median, 95th percentile and seq_len.

    Args:
        path: the file to write.
        lengths: tokens of each document, by source; 0 for those without text.
        seq_len: tokens of a row.
        is_estimate: whether it is of a sample, which the picture then says.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    lengths = {name: some[some > 0] for name, some in lengths.items()}
    longest = max([seq_len, *(int(some.max()) for some in lengths.values() if len(some))])
    edges = np.geomspace(1, longest + 1, 81)
    figure, axes = pyplot.subplots(
        len(lengths), 1, sharex=True, squeeze=False, figsize=(_INCHES_WIDE, 0.7 + _INCHES_PER_SOURCE * len(lengths))
    )
    try:
        for axis, (name, some) in zip(axes[:, 0], lengths.items(), strict=True):
            # Of whole numbers several bins at the short end hold none: there the bins are as wide as the numbers.
            axis.hist(some, bins=np.unique(np.ceil(edges)) - 0.5, color="#4c78a8")
            axis.set_title(
                f"{name}: {len(some):,} documents{' (a sample)' if is_estimate else ''}", loc="left", fontsize=10
            )
            axis.set_ylabel("documents")
            axis.spines[["top", "right"]].set_visible(False)
            axis.axvline(seq_len, color="black", linestyle="--", linewidth=1.2, label=f"seq_len {seq_len:,}")
            if len(some):
                median, high = (int(q) for q in np.quantile(some, (0.5, 0.95), method="inverted_cdf"))
                axis.axvline(median, color="#e45756", linewidth=1.5, label=f"median {median:,}")
                axis.axvline(high, color="#f58518", linewidth=1.5, label=f"95 % ≤ {high:,}")
            axis.legend(frameon=False, fontsize=8)
        axes[-1, 0].set_xscale("log")
        axes[-1, 0].set_xlim(left=min([seq_len, *(int(some.min()) for some in lengths.values() if len(some))]) / 1.5)
        axes[-1, 0].xaxis.set_major_formatter(FuncFormatter(lambda length, _: f"{length:,.0f}"))
        axes[-1, 0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
        axes[-1, 0].xaxis.set_minor_locator(NullLocator())
        axes[-1, 0].set_xlabel("tokens of a document")
        figure.tight_layout()
        figure.savefig(path, dpi=150)
    finally:
        pyplot.close(figure)


def _edges(shortest: int, longest: int, per_doubling: int) -> list[int]:
    """Bounds of bins that end with a power of 2, as seq_len often does: 1, 2, 3, 5, 9, 17, …; those around the lengths."""
    edges = [1]
    steps = 0
    while edges[-1] <= longest:
        edges.append(max(round(2 ** (steps / per_doubling)) + 1, edges[-1] + 1))
        steps += 1
    first = max(at for at, edge in enumerate(edges) if edge <= shortest)
    return edges[first:]


def _bar(share: float, room: int) -> str:
    """A bar of `room` columns, to the eighth of one; what is more than nothing is seen."""
    eighths = max(round(share * room * 8), 1 if share > 0 else 0)
    return f"{'█' * (eighths // 8)}{_EIGHTHS[eighths % 8]}"[:room].ljust(room)
