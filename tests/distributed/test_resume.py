"""Checkpoints on real ranks: bit-identical at the same world size; equal batches and losses at any other one.

What is resumed elsewhere is also resumed in another placement, with other micro-batches and on another number of nodes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks

pytestmark = pytest.mark.dist

WORLDS = (1, 2, 4)
FIRST, STEPS = 4, 20
"""Step of the checkpoints, and how many are compared after it."""

HIDDEN_KEY = ("--hidden_key.enabled", "true", "--hidden_key.key_pattern", "span")
METHODS = {"full": ("none",), "lora": ("lora",), "monteclora": ("monteclora", "--adapter.dropout", "0.1")}
OPTIMIZERS = {"adamw": (), "lionw": ("--optim.kind", "lionw", "--optim.lr", "1e-3", "--optim.weight_decay", "1e-3")}
PLACEMENTS = ("zero3", "zero3_hpz", "replicated", "zero3_offload")
BF16 = {
    "full": METHODS["full"],
    # The cooperative phase begins before the checkpoint, or after it.
    "monteclora": ("monteclora", "--adapter.start_step", "3", "--adapter.dropout", "0.1"),
    "monteclora_later": ("monteclora", "--adapter.start_step", "8", "--adapter.posthoc", "true", *HIDDEN_KEY),
    "hidden_key": ("lora", *HIDDEN_KEY, "--hidden_key.compensation", "js", "--hidden_key.compensation_weight", "10"),
}
ROWS = 2
"""Rows of a micro-batch of the runs that save."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How ranks train."""

    world: int
    placement: str = "zero3"
    nodes: int = 1
    rows: int = ROWS
    """Of a micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A run, how it is before its checkpoint and how after."""

    run: str
    """Name of the run that saves, and of its directory."""
    settings: tuple[str, ...]
    saved: Way
    resumed: Way
    tolerance: float
    """Of a loss, where the world differs."""

    @property
    def name(self) -> str:
        return f"{self.run}, on {self.resumed.world} by {self.resumed.rows}"

    def case(self, way: Way, folder: Path) -> dict[str, Any]:
        overrides = [
            "--adapter.kind", *self.settings, "--run.dir", str(folder / self.run), "--train.placement", way.placement,
            "--train.micro_batch_rows", str(way.rows), "--train.steps", str(FIRST + STEPS),
        ]  # fmt: skip
        return {"overrides": overrides, "local_size": way.world // way.nodes}


def matrix() -> Iterator[Cell]:
    """Every method with every optimizer from every world to every world, through all pairs of placements.

    At the same world size nothing else changes, either: the curve is to be the same one.
    """
    uses: Counter[tuple[str, str]] = Counter()
    for method, optimizer, world in itertools.product(METHODS, OPTIMIZERS, WORLDS):
        before = min(placements(world), key=lambda each: sum(uses[each, after] for after in PLACEMENTS))
        saved = Way(world=world, placement=before, nodes=max(1, world // 2))
        for other in WORLDS:
            resumed = saved
            if other != world:
                after = min(placements(other), key=lambda each: uses[before, each])
                uses[before, after] += 1
                # Which rows share a forward decides which noise they get; see below.
                rows = ROWS if method == "monteclora" else min(8 // other, 1 << uses.total() % 4)
                nodes = 1 if after == "zero3_hpz" else other
                resumed = Way(world=other, placement=after, nodes=nodes, rows=rows)
            yield Cell(
                run=f"{method} {optimizer} from {world}", settings=(*METHODS[method], *OPTIMIZERS[optimizer]),
                saved=saved, resumed=resumed, tolerance=1e-5,
            )  # fmt: skip


def placements(world: int) -> tuple[str, ...]:
    """hpZ is about several ranks of a node."""
    return tuple(each for each in PLACEMENTS if world > 1 or each != "zero3_hpz")


def in_bf16() -> Iterator[Cell]:
    for name, other in zip(BF16, itertools.cycle((1, 4)), strict=False):
        for world in (2, other):
            yield Cell(
                run=f"{name} bf16", settings=(*BF16[name], "--train.precision", "bf16"), saved=Way(world=2),
                resumed=Way(world=world), tolerance=2e-3,
            )  # fmt: skip


def another_way() -> Iterator[Cell]:
    """As many ranks, of which nothing else is as it was."""
    yield dataclasses.replace(named("full adamw from 2"), resumed=Way(world=2, placement="replicated", nodes=2, rows=1))
    yield dataclasses.replace(named("lora lionw from 4"), resumed=Way(world=4, nodes=4, rows=1))


def named(run: str) -> Cell:
    return next(cell for cell in matrix() if cell.run == run)


CELLS = (*matrix(), *another_way(), *in_bf16())
NOISY = named("monteclora adamw from 2")
OTHER_ROWS = tuple(
    dataclasses.replace(NOISY, resumed=Way(world=world, rows=rows)) for world, rows in ((1, 1), (4, 1), (1, 4), (2, 4))
)
"""A run with noise, resumed with other micro-batches."""


def test_the_matrix_has_all_it_should() -> None:
    elsewhere = [cell for cell in matrix() if cell.saved.world != cell.resumed.world]
    assert len(list(matrix())) == len(METHODS) * len(OPTIMIZERS) * len(WORLDS) ** 2
    assert {(cell.saved.placement, cell.resumed.placement) for cell in elsewhere} == set(
        itertools.product(PLACEMENTS, PLACEMENTS)
    )
    for world in WORLDS:
        assert len({cell.resumed.rows for cell in elsewhere if cell.resumed.world == world}) > 1
    assert {(cell.saved.nodes, cell.resumed.nodes) for cell in elsewhere} >= {(1, 2), (1, 4), (2, 1), (2, 2)}


Curve = list[list[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resumed")


def shared_memory() -> set[Path]:
    """Files of DeepSpeed's shared memory that no process has in its memory; other runs on this machine may have theirs."""
    mapped = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped.append(maps.read_text())
    text = "".join(mapped)
    return {path for path in Path("/dev/shm").glob("deepspeed_*") if str(path) not in text}


def launch(function: str, world: int, cases: dict[str, Any], recipe: Path) -> dict[str, Curve]:
    before = shared_memory()
    ranks = run_ranks(
        f"tests.distributed.resume_scenarios:{function}", world, timeout=540, recipe=str(recipe), cases=cases,
        first=FIRST, last=FIRST + STEPS,
    )  # fmt: skip
    assert all(rank == ranks[0] for rank in ranks), "ranks disagree"
    assert shared_memory() <= before, "shared memory outlives the ranks"
    found: dict[str, Curve] = ranks[0]
    return found


@pytest.fixture(scope="module")
def saved(folder: Path, tiny_recipe: Path) -> dict[str, Curve]:
    """Curves of the runs that saved and were not interrupted, from the save on."""
    curves: dict[str, Curve] = {}
    for world in WORLDS:
        cases = {cell.run: cell.case(cell.saved, folder) for cell in CELLS if cell.saved.world == world}
        curves |= launch("save", world, cases, tiny_recipe)
    return curves


def resume_all(world: int, folder: Path, recipe: Path) -> dict[str, Curve]:
    cells = [cell for cell in (*CELLS, *OTHER_ROWS) if cell.resumed.world == world]
    return launch("resume", world, {cell.name: cell.case(cell.resumed, folder) for cell in cells}, recipe)


@pytest.fixture(scope="module")
def on_1(saved: dict[str, Curve], folder: Path, tiny_recipe: Path) -> dict[str, Curve]:
    return resume_all(1, folder, tiny_recipe)


@pytest.fixture(scope="module")
def on_2(saved: dict[str, Curve], folder: Path, tiny_recipe: Path) -> dict[str, Curve]:
    return resume_all(2, folder, tiny_recipe)


@pytest.fixture(scope="module")
def on_4(saved: dict[str, Curve], folder: Path, tiny_recipe: Path) -> dict[str, Curve]:
    return resume_all(4, folder, tiny_recipe)


@pytest.fixture
def resumed(request: pytest.FixtureRequest) -> Callable[[Cell], Curve]:
    """The curve of a run that was resumed."""
    return lambda cell: request.getfixturevalue(f"on_{cell.resumed.world}")[cell.name]


def column(curve: Curve, index: int) -> list[Any]:
    return [line[index] for line in curve]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_run_goes_on(cell: Cell, saved: dict[str, Curve], resumed: Callable[[Cell], Curve]) -> None:
    straight, again = saved[cell.run], resumed(cell)
    assert len(straight) == STEPS
    assert straight[-1][0] < straight[0][0], "it learns"
    if cell.resumed == cell.saved:
        assert again == straight, "a resumed run must be the uninterrupted one, bit for bit"
        return
    assert column(again, 3) == column(straight, 3), "the batches differ"
    assert column(again, 0) == pytest.approx(column(straight, 0), abs=cell.tolerance)


def test_other_micro_batches_draw_other_noise_on_any_world(
    saved: dict[str, Curve], resumed: Callable[[Cell], Curve]
) -> None:
    """What train.micro_batch_rows changes, and what not."""
    straight = saved[NOISY.run]
    alone = {cell.resumed.rows: resumed(cell) for cell in OTHER_ROWS if cell.resumed.world == 1}
    for cell in OTHER_ROWS:
        again = resumed(cell)
        assert column(again, 3) == column(straight, 3), "the batches differ"
        assert column(again, 0) == pytest.approx(column(alone[cell.resumed.rows], 0), abs=1e-5)
        assert column(again, 2) == pytest.approx(column(alone[cell.resumed.rows], 2), rel=1e-6)
        assert column(again, 0) != pytest.approx(column(straight, 0), abs=1e-3), "the noise is the same"
        assert column(again, 0) == pytest.approx(column(straight, 0), abs=0.05), "it is more than noise"
