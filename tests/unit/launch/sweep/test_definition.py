from __future__ import annotations

from pathlib import Path

import pytest

from launch.sweep.definition import read_definition
from tests.unit.launch.sweep.sweeps import GRID, HEAD, problems_of, sweep_of, write_sweep
from training.recipe import ConfigError


class TestReading:
    def test_paths_are_relative_to_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir("/")
        monkeypatch.setenv("WHERE", "there")
        file = write_sweep(tmp_path, '[grid]\nmodel.base = ["base", "owner/name"]\n', HEAD.replace("study", "$WHERE/x"))
        (tmp_path / "zero.json").write_text("{}")
        file.write_text('ds_config = "zero.json"\n' + file.read_text())
        found = read_definition(file)
        assert (found.recipe, found.root) == (tmp_path / "recipe.toml", tmp_path / "there/x")
        assert found.ds_config == tmp_path / "zero.json"
        assert found.grid == {"model.base": [str(tmp_path / "base"), "owner/name"]}

    def test_settings_in_quotes_and_as_tables_are_the_same(self, tmp_path: Path) -> None:
        quoted = sweep_of(
            tmp_path / "a", '[grid]\n"optim.lr" = [1e-3, 2e-3]\n"data.sources.text.weight" = [1.0, 2.0]\n'
        )
        tables = sweep_of(
            tmp_path / "b", "[grid.optim]\nlr = [1e-3, 2e-3]\n[grid.data.sources.text]\nweight = [1, 2]\n"
        )
        assert [cell.settings for cell in quoted.cells] == [cell.settings for cell in tables.cells]

    def test_a_list_is_a_value_where_the_setting_is_a_list(self, tmp_path: Path) -> None:
        text = '[methods.a]\neval.suites = ["x", "y"]\n[methods.b]\neval.suites = [["x"], ["x", "z"]]\n'
        sweep = sweep_of(tmp_path, text)
        assert [cell.settings["eval.suites"] for cell in sweep.cells] == [("x", "y"), ("x",), ("x", "z")]
        assert [cell.name for cell in sweep.cells] == ["a", "b-suites_x", "b-suites_x_z"]

    def test_a_table_is_a_value_where_the_setting_is_one(self, tmp_path: Path) -> None:
        sweep = sweep_of(tmp_path, '[methods.a]\n"adapter.rank_pattern" = {"*.mlp.*" = 8}\n[methods.b]\n')
        assert sweep.cells[0].arguments[:2] == ["--adapter.rank_pattern", '{"*.mlp.*" = 8}']


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sedtings = 1" + GRID, "sedtings (sweep.toml): unknown key; did you mean settings?"),
        ("nonsense = 1" + GRID, "nonsense (sweep.toml): unknown key; a sweep has recipe, ds_config, root, settings, grid, methods, "
                                "skip; settings of runs go in [settings]"),
        ('ds_config = "no.json"' + GRID, 'ds_config = "{folder}/no.json" (sweep.toml): no such file'),
        ('ds_config = ""' + GRID, 'ds_config (sweep.toml): is ""; must be a path'),
        ('[settings]\n"optim.lrr" = 1' + GRID, "settings.optim.lrr (sweep.toml): unknown setting; did you mean optim.lr?"),
        ('[settings]\n"adapter.rank" = 1.5' + GRID, "adapter.rank = 1.5 (sweep.toml): must be a whole number, not a number"),
        ('[settings]\n"run.dir" = "x"' + GRID, "settings.run.dir (sweep.toml): is what the sweep gives to its cells: root, and the "
                                               "cell's name; set root"),
        ("[settings.run]\ndir = 'x'" + GRID, "settings.run.dir (sweep.toml): is what the sweep gives to its cells: root, and the "
                                             "cell's name; set root"),
        ("settings = 1" + GRID, "settings = 1 (sweep.toml): is a section: write [settings]"),
        ('[settings]\n"optim.lr" = 1e-3' + GRID, "optim.lr (sweep.toml): is in [settings] and in [grid]; keep one of them"),
        ("[grid]\n'optim.lr' = 1e-3", "grid.optim.lr = 0.001 (sweep.toml): must be a list of values; one value for all cells goes in "
                                      "[settings]"),
        ("[grid]\n'optim.lr' = []", "grid.optim.lr (sweep.toml): is empty; an axis needs a value or more"),
        ("[grid]\n'optim.lr' = [1, 1.0]", "grid.optim.lr (sweep.toml): has 1.0 twice"),
        ("[grid]\n'optim.lr' = [1, 'x']", 'optim.lr = "x" (sweep.toml): must be a number, not a string'),
        ("[grid]\n'optim.lrr' = [1]", "grid.optim.lrr (sweep.toml): unknown setting; did you mean optim.lr?"),
        ("[methods]\na = 1", "methods.a = 1 (sweep.toml): is a section: write [methods.a]"),
        ("methods = 1", "methods = 1 (sweep.toml): is a section: write [methods.NAME]"),
        ("[methods.'a/b']", 'methods."a/b" (sweep.toml): is part of folders\' names: use letters, digits, and . _ + - between them'),
        ("[methods.'']", 'methods."" (sweep.toml): is part of folders\' names: use letters, digits, and . _ + - between them'),
        ("[methods.a]\n'optim.lrr' = 1", "methods.a.optim.lrr (sweep.toml): unknown setting; did you mean optim.lr?"),
        ("[methods.a]\n'optim.lr' = []", "methods.a.optim.lr (sweep.toml): is empty; an axis needs a value or more"),
        ("[methods.a]\n'run.dir' = 'x'", "methods.a.run.dir (sweep.toml): is what the sweep gives to its cells: root, and the cell's "
                                         "name; set root"),
        ("", "grid (sweep.toml): there is neither [grid] nor [methods], so there is nothing to compare; start the recipe itself"),
        ("skip = 1" + GRID, "skip (sweep.toml): is a list of sections: write [[skip]]"),
        (GRID + "[[skip]]", "skip 1 (sweep.toml): is empty, and would leave out every cell"),
        (GRID + "[[skip]]\n'adapter.rank' = 1", "skip 1: adapter.rank (sweep.toml): is no axis; there are optim.lr, run.seed"),
        (GRID + "[[skip]]\nmethod = 'x'", 'skip 1: method = "x" (sweep.toml): there is no such method; there are none'),
        (GRID + "[methods.a]\n[methods.b]\n'run.seed' = 9\n[[skip]]\nmethod = 'c'",
         'skip 1: method = "c" (sweep.toml): there is no such method; there are a, b'),
        (GRID + "[[skip]]\n'optim.lr' = 7", "skip 1 (sweep.toml): leaves out no cell; are its values those of [grid] and [methods]?"),
        (GRID + "[[skip]]\n'run.seed' = [1, 2, 3]", "skip (sweep.toml): leaves out every cell"),
        ("[grid]\n'monitor.wandb_project' = ['--x']", 'monitor.wandb_project = "--x" (sweep.toml): can\'t be written on a run\'s command line; '
                                                      "set it in the recipe"),
        ("[grid]\n'monitor.wandb_project' = ['a\\nb']".replace("'a", '"a').replace("b'", 'b"'),
         'monitor.wandb_project = "a\nb" (sweep.toml): can\'t be written on a run\'s command line; set it in the recipe'),
        ("[grid]\n'eval.suites' = [['a,b']]", "eval.suites = ['a,b'] (sweep.toml): can't be written on a run's command line; set it in the "
                                              "recipe"),
        ("[methods.logs]", "logs (sweep.toml): is the name of something else in {folder}/study; rename the method"),
        ("[methods.a]\n[methods.b]", "b (sweep.toml): has the same settings as a; what is to tell them apart?"),
        ("[grid]\n'run.seed' = [{numbers}]", "sweep.toml: makes 1,001 cells, and a sweep has at most 1,000, as Slurm's job arrays do by default "
                                            "(MaxArraySize); take fewer values, or split it into files"),
    ],
)  # fmt: skip
def test_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    text = text.replace("{numbers}", ", ".join(map(str, range(1001))))
    assert problems_of(tmp_path, text) == [problem.replace("{folder}", str(tmp_path))]


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ('root = "x"\n', "recipe (sweep.toml): is missing: the TOML file of the runs"),
        ('recipe = "recipe.toml"\n', "root (sweep.toml): is missing: the folder of the cells' run directories"),
        ('recipe = 3\nroot = "x"\n', "recipe (sweep.toml): is 3; must be a path"),
        ('recipe = "no.toml"\nroot = "x"\n', 'recipe = "{folder}/no.toml" (sweep.toml): no such file'),
        ('recipe = "recipe.toml"\nroot = "$NOWHERE/x"\n', 'root = "$NOWHERE/x" (sweep.toml): the environment variable NOWHERE is not set'),
        ('recipe = "recipe.toml"\nroot = "x/{adapter.kind}"\n',
         'root = "{folder}/x/{adapter.kind}" (sweep.toml): has braces; the cells are its folders, by their names'),
        ('recipe = "recipe.toml"\nroot = "x"\n[methods.a]\nrecipe = "no.toml"\n',
         'methods.a.recipe = "{folder}/no.toml" (sweep.toml): no such file'),
        ('recipe = "recipe.toml"\nroot = "x"\n[methods.a]\nrecipe = 3\n', "methods.a.recipe (sweep.toml): is 3; must be a path"),
        ('root = "x"\n[methods.a]\nrecipe = "recipe.toml"\n[methods.b]\n',
         "recipe (sweep.toml): is missing: the TOML file of the runs"),
    ],
)  # fmt: skip
def test_what_is_wrong_at_the_top(tmp_path: Path, head: str, problem: str) -> None:
    assert problems_of(tmp_path, GRID, head) == [problem.replace("{folder}", str(tmp_path))]


@pytest.mark.parametrize("value", ["[" * 5000, "2020-02-30", "9" * 5000])
def test_toml_that_python_gives_up_on(tmp_path: Path, value: str) -> None:
    file = write_sweep(tmp_path, f"[grid]\nrun.seed = {value}\n")
    with pytest.raises(ConfigError, match=r"sweep.toml: not valid TOML: "):
        read_definition(file)


def test_everything_at_once(tmp_path: Path) -> None:
    text = (
        "[settings]\n'optim.lrr' = 1\n[grid]\n'optim.lr' = 1\n'run.seed' = [1, 1]\n[methods.a]\n'adapter.rank' = 'x'\n"
    )
    assert len(problems_of(tmp_path, text, 'recipe = "no.toml"\nnonsense = 1\n')) == 7


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, ": no such file"), (b"x = ", ": not valid TOML: "), (b"\xff", ": can't be read: ")],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "sweep.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_definition(path)
    (found,) = caught.value.problems
    assert found.startswith(f"{path}{problem}")
