from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from launch.sweep.cells import expand
from launch.sweep.definition import read_definition
from launch.sweep.record import command
from tests.unit.launch.sweep.sweeps import GRID, sweep_of, write_sweep

METHODS = """
[methods.full]
"adapter.kind" = "none"

[methods.lora]
"adapter.kind" = "lora"
"optim.lr" = [1e-4, 2e-4]
"adapter.rank" = [4, 64]
"""


def names(folder: Path, text: str) -> list[str]:
    return [cell.name for cell in sweep_of(folder, text).cells]


class TestOrder:
    def test_the_last_axis_goes_fastest(self, tmp_path: Path) -> None:
        assert names(tmp_path, GRID) == [f"lr{lr}-seed{seed}" for lr in ("1e-5", "2e-5") for seed in (1, 2, 3)]

    def test_methods_first_and_their_own_axes_last(self, tmp_path: Path) -> None:
        sweep = sweep_of(tmp_path, GRID + METHODS)
        assert sweep.axes == ("method", "optim.lr", "run.seed", "adapter.rank")
        assert len(sweep.cells) == 2 * 3 + 2 * 3 * 2
        assert [cell.index for cell in sweep.cells] == list(range(18))
        assert sweep.cells[0].name == "full-lr1e-5-seed1"
        assert sweep.cells[6].name == "lora-lr1e-4-seed1-rank4"
        assert sweep.cells[6].values == {"method": "lora", "optim.lr": 1e-4, "run.seed": 1, "adapter.rank": 4}

    def test_one_value_in_a_method_takes_the_place_of_the_grids(self, tmp_path: Path) -> None:
        text = GRID + '[methods.a]\n[methods.b]\n"optim.lr" = 3e-5\n'
        assert names(tmp_path, text)[6:] == [f"b-lr3e-5-seed{seed}" for seed in (1, 2, 3)]

    def test_a_cell_has_values_on_axes_of_other_methods_that_something_sets(self, tmp_path: Path) -> None:
        text = '[settings]\n"run.seed" = 4\n[methods.a]\n"optim.lr" = 1e-3\n[methods.b]\n"optim.lr" = [1e-4, 1e-5]\n"run.seed" = [1]\n'
        first = sweep_of(tmp_path, text).cells[0]
        assert (first.name, first.values) == ("a", {"method": "a", "optim.lr": 1e-3, "run.seed": 4})

    def test_a_method_overrides_the_settings_of_all(self, tmp_path: Path) -> None:
        text = '[settings]\n"optim.beta2" = 0.9\n[methods.a]\n"optim.beta2" = 0.8\n[methods.b]\n'
        assert [cell.settings["optim.beta2"] for cell in sweep_of(tmp_path, text).cells] == [0.8, 0.9]

    def test_values_that_are_added_leave_the_other_names_as_they_were(self, tmp_path: Path) -> None:
        more = GRID.replace("2e-5]", "2e-5, 4e-5]") + METHODS + '[methods.new]\n"adapter.kind" = "monteclora"\n'
        assert set(names(tmp_path / "a", GRID + METHODS)) < set(names(tmp_path / "b", more))

    def test_a_method_may_have_its_own_recipe(self, tmp_path: Path) -> None:
        (tmp_path / "other.toml").write_text(write_sweep(tmp_path).with_name("recipe.toml").read_text())
        text = '[methods.a]\n[methods.b]\nrecipe = "other.toml"\n'
        sweep = sweep_of(tmp_path, GRID + text)
        assert [cell.recipe.name for cell in sweep.cells] == 6 * ["recipe.toml"] + 6 * ["other.toml"]
        assert [command(sweep, cell)[0] for cell in sweep.cells[5:7]] == [
            str(tmp_path / name) for name in ("recipe.toml", "other.toml")
        ]
        (alone,) = sweep_of(tmp_path, '[methods.b]\nrecipe = "other.toml"\n', 'root = "study"\n').cells
        assert (alone.name, alone.recipe) == ("b", tmp_path / "other.toml")


class TestSkipping:
    def test_cells_that_match_all_of_an_entry(self, tmp_path: Path) -> None:
        skip = '[[skip]]\nmethod = "full"\n"run.seed" = 3\n'
        found = names(tmp_path, GRID + METHODS + skip)
        assert len(found) == 16
        assert not any(name.startswith("full") and name.endswith("seed3") for name in found)

    def test_a_list_is_any_of_its_values(self, tmp_path: Path) -> None:
        assert names(tmp_path, GRID + '[[skip]]\n"run.seed" = [1, 3]\n') == ["lr1e-5-seed2", "lr2e-5-seed2"]

    def test_a_cell_without_the_axis_stays(self, tmp_path: Path) -> None:
        found = names(tmp_path, GRID + METHODS + '[[skip]]\n"adapter.rank" = [4, 64]\n')
        assert {name.split("-")[0] for name in found} == {"full"}

    def test_what_is_left_is_numbered_without_gaps(self, tmp_path: Path) -> None:
        sweep = sweep_of(tmp_path, GRID + '[[skip]]\n"run.seed" = 1\n')
        assert [cell.index for cell in sweep.cells] == [0, 1, 2, 3]


def test_the_arguments_of_a_cell(tmp_path: Path) -> None:
    text = '[settings]\n"train.steps" = 7\n' + GRID + METHODS
    cell = sweep_of(tmp_path, text).cells[7]
    assert cell.arguments == [
        "--train.steps", "7", "--adapter.kind", "lora", "--optim.lr", "1e-4", "--run.seed", "1", "--adapter.rank", "64",
        "--run.dir", str(tmp_path / "study" / "lora-lr1e-4-seed1-rank64"),
    ]  # fmt: skip


AXES = {
    "optim.lr": st.floats(1e-8, 10, allow_nan=False),
    "run.seed": st.integers(0, 10**6),
    "adapter.rank": st.integers(1, 512),
    "adapter.dropout": st.floats(0, 1, exclude_max=True),
    "optim.schedule": st.sampled_from(["constant", "linear", "cosine", "trapezoid"]),
}


@given(st.dictionaries(st.sampled_from(sorted(AXES)), st.none(), min_size=1, max_size=4), st.data())
@settings(max_examples=40)
def test_every_combination_once_and_the_same_when_read_again(chosen: dict[str, None], data: st.DataObject) -> None:
    grid = {axis: data.draw(st.lists(AXES[axis], min_size=1, max_size=4, unique=True)) for axis in chosen}
    lines = [
        f'"{axis}" = {[str(value) for value in values] if axis == "optim.schedule" else values}'
        for axis, values in grid.items()
    ]
    text = "[grid]\n" + "\n".join(lines) + "\n[methods.one]\n[methods.two]\n'adapter.kind' = 'monteclora'\n"
    with TemporaryDirectory() as folder:
        file = write_sweep(Path(folder), text)
        sweep = expand(read_definition(file))
        assert sweep == expand(read_definition(file))
    assert len(sweep.cells) == 2 * math.prod(map(len, grid.values()))
    assert (
        len({cell.name for cell in sweep.cells})
        == len({str(cell.settings) for cell in sweep.cells})
        == len(sweep.cells)
    )
    assert [cell.index for cell in sweep.cells] == list(range(len(sweep.cells)))
    assert {axis for axis in sweep.axes} == {"method", *grid}
