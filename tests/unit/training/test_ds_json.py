from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.ds_json import KNOWN, OWNED, REMOVED, TOP, UNSUPPORTED, ZERO, key_lines, read_ds_config

ROOT = Path(__file__).resolve().parents[3]


def found(folder: Path, text: str) -> list[str]:
    """What is wrong with a file of this text, without the file's name."""
    path = folder / "zero.json"
    path.write_text(text)
    content, problems = read_ds_config(path)
    assert content == json.loads(text)
    assert all(problem.startswith(f"--ds_config {path}: ") for problem in problems)
    return [problem.removeprefix(f"--ds_config {path}: ") for problem in problems]


def zero3(top: dict[str, Any] | None = None, **zero: Any) -> str:
    """A valid file (a key to a line) with something added."""
    return json.dumps({"zero_optimization": {"stage": 3, **zero}, **(top or {})}, indent=1)


def added(dotted: str, value: Any) -> str:
    """A valid file with the key at a dotted path added: at line 4 inside zero_optimization, at line 5 outside."""
    outer, _, inner = dotted.rpartition(".")
    return zero3(**{inner: value}) if outer == "zero_optimization" else zero3({dotted: value})


class TestTheFile:
    def test_it_is_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "none.json"
        assert read_ds_config(path) == ({}, [f"--ds_config {path}: no such file"])

    def test_it_is_a_folder(self, tmp_path: Path) -> None:
        content, (problem,) = read_ds_config(tmp_path)
        assert content == {}
        assert problem.startswith(f"--ds_config {tmp_path}: can't be read: ")

    def test_it_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "zero.json"
        path.write_bytes(b"\xff\xff")
        content, (problem,) = read_ds_config(path)
        assert content == {}
        assert problem.startswith(f"--ds_config {path}: can't be read: ")

    def test_it_is_no_json(self, tmp_path: Path) -> None:
        path = tmp_path / "zero.json"
        path.write_text('{\n "zero_optimization": {"stage": 3},\n}')
        content, (problem,) = read_ds_config(path)
        assert content == {}
        assert problem.startswith(f"--ds_config {path}: not valid JSON: ")
        assert problem.endswith("at line 2, column 36") or problem.endswith("at line 3, column 1")

    @pytest.mark.parametrize("text", ["[]", '"x"', "3", "null"])
    def test_it_is_no_object(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "zero.json"
        path.write_text(text)
        assert read_ds_config(path) == ({}, [f"--ds_config {path}: must be a JSON object"])


@pytest.mark.parametrize("shipped", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_a_shipped_file_has_no_problems(shipped: Path) -> None:
    content, problems = read_ds_config(shipped)
    assert problems == []
    assert content["zero_optimization"]["stage"] == 3


def test_there_are_shipped_files() -> None:
    assert {"zero3.json", "zero3_cpu.json"} <= {path.name for path in (ROOT / "ds_configs").glob("*.json")}


class TestKeys:
    @pytest.mark.parametrize("key", sorted(OWNED))
    def test_what_the_recipe_owns(self, tmp_path: Path, key: str) -> None:
        line = 4 if "." in key else 5
        for value in ("auto", 1, {"enabled": "auto", "made_up": 1}):
            assert found(tmp_path, added(key, value)) == [
                f"{key!r} belongs to the recipe ({OWNED[key]}); delete line {line}"
            ]

    @pytest.mark.parametrize("key", sorted(REMOVED))
    def test_what_deepspeed_removed(self, tmp_path: Path, key: str) -> None:
        line = 4 if "." in key else 5
        expected = [f"{key!r} was removed from DeepSpeed; delete line {line} ({REMOVED[key]})"]
        assert found(tmp_path, added(key, {"enabled": "auto"})) == expected

    @pytest.mark.parametrize("key", sorted(UNSUPPORTED))
    @pytest.mark.parametrize("value", [True, 4, {"device": "cpu"}], ids=str)
    def test_what_checkpoints_do_not_cover(self, tmp_path: Path, key: str, value: Any) -> None:
        line = 4 if "." in key else 5
        assert found(tmp_path, added(key, value)) == [
            f"{key!r}: {UNSUPPORTED[key]} is not supported yet; delete line {line}"
        ]

    @pytest.mark.parametrize("key", sorted(UNSUPPORTED))
    @pytest.mark.parametrize("value", [None, False, 1], ids=str)
    def test_what_is_switched_off_may_stay(self, tmp_path: Path, key: str, value: Any) -> None:
        assert found(tmp_path, added(key, value)) == []

    def test_unknown(self, tmp_path: Path) -> None:
        assert found(tmp_path, added("steps_per_prnt", 1)) == [
            "unknown key 'steps_per_prnt' at line 5; did you mean 'steps_per_print'?"
        ]
        assert found(tmp_path, added("qqqq", "auto")) == ["unknown key 'qqqq' at line 5"]

    @pytest.mark.parametrize("key", sorted(KNOWN - {"zero_optimization"}))
    def test_engine_mechanics_are_fine(self, tmp_path: Path, key: str) -> None:
        value = {"an object": {}, "true or false": True}.get(TOP.get(key, ""), 1)
        assert found(tmp_path, added(key, value)) == []

    @pytest.mark.parametrize("key", sorted(TOP))
    def test_values_of_another_type(self, tmp_path: Path, key: str) -> None:
        for value in ("maybe", 1.5, 0):
            assert found(tmp_path, added(key, value)) == [
                f"{key!r} is {json.dumps(value)} at line 5: must be {TOP[key]}"
            ]

    @pytest.mark.parametrize(
        ("key", "value"), [("reduce_bucket_size", 0), ("stage3_prefetch_bucket_size", 1.5), ("sub_group_size", True)]
    )
    def test_sizes_that_deepspeed_would_stop_at(self, tmp_path: Path, key: str, value: Any) -> None:
        (problem,) = found(tmp_path, added(f"zero_optimization.{key}", value))
        assert problem.endswith(f"is {json.dumps(value)} at line 4: must be {ZERO[key]}")

    def test_a_size_can_be_written_with_an_exponent(self, tmp_path: Path) -> None:
        assert found(tmp_path, added("zero_optimization.stage3_max_live_parameters", 1e9)) == []

    @pytest.mark.parametrize("key", ["steps_per_print", "zero_optimization.reduce_bucket_size"])
    def test_auto_is_for_another_program(self, tmp_path: Path, key: str) -> None:
        line = 4 if "." in key else 5
        assert found(tmp_path, added(key, "auto")) == [
            f'{key!r} is "auto" at line {line}: DeepSpeed would ignore it; give a value or delete the line'
        ]

    def test_auto_deeper_inside(self, tmp_path: Path) -> None:
        text = zero3({"flops_profiler": {"enabled": True, "detailed": {"deep": "auto"}}})
        (problem,) = found(tmp_path, text)
        assert problem.startswith("'flops_profiler.detailed.deep' is \"auto\" at line 8: ")

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("{}", "null"), ('{"zero_optimization": {}}', "null"),
            ('{"zero_optimization": {"stage": 2}}', "2"), ('{"zero_optimization": {"stage": "3"}}', '"3"'),
        ],
    )  # fmt: skip
    def test_the_stage(self, tmp_path: Path, text: str, shown: str) -> None:
        assert found(tmp_path, text) == [
            f"'zero_optimization.stage' must be 3, not {shown}: the engine is built on ZeRO-3"
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"zero_optimization": 3}', "'zero_optimization' must be an object, such as {\"stage\": 3}, at line 1"),
            ('{"zero_optimization": {"stage": 3,\n"reduce_bucket_sise": 5}}',
             "unknown key 'zero_optimization.reduce_bucket_sise' at line 2; did you mean 'reduce_bucket_size'?"),
            ('{"zero_optimization": {"stage": 3, "sub_group_size": "big"}}',
             "'zero_optimization.sub_group_size' is \"big\" at line 1: must be a whole number, at least 1"),
            ('{"zero_optimization": {"stage": 3, "reduce_bucket_size": -1}}',
             "'zero_optimization.reduce_bucket_size' is -1 at line 1: must be a whole number, at least 1"),
            ('{"zero_optimization": {"stage": 3, "overlap_comm": 1}}',
             "'zero_optimization.overlap_comm' is 1 at line 1: must be true or false"),
            ('{"zero_optimization": {"stage": 3, "leaf_module": []}}',
             "'zero_optimization.leaf_module' is [] at line 1: must be an object"),
        ],
    )  # fmt: skip
    def test_below_the_top_level(self, tmp_path: Path, text: str, message: str) -> None:
        assert found(tmp_path, text) == [message]

    def test_all_at_once_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        text = json.dumps(
            {
                "train_batch_size": 8,
                "zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}, "mics_shard_size": 2},
                "elasticity": {},
                "dump_stat": 1,
                "bf16": {"enabled": True},
                "timers": "auto",
            },
            indent=2,
        )
        starts = [
            "'train_batch_size' belongs to the recipe (train.global_batch_rows); delete line 2",
            "'zero_optimization.offload_param': offloading of weights is not supported yet; delete line 5",
            "'zero_optimization.mics_shard_size' was removed from DeepSpeed; delete line 8",
            "'elasticity' was removed from DeepSpeed; delete line 10",
            "unknown key 'dump_stat' at line 11; did you mean 'dump_state'?",
            "'bf16' belongs to the recipe (train.precision); delete line 12",
            "'timers' is \"auto\" at line 15",
            "'zero_optimization.stage' must be 3, not 2",
        ]
        problems = found(tmp_path, text)
        assert len(problems) == len(starts)
        assert all(problem.startswith(start) for problem, start in zip(problems, starts, strict=True))


class TestLines:
    def test_the_same_key_at_different_depths(self, tmp_path: Path) -> None:
        text = '{\n "flops_profiler": {\n  "timers": 1,\n  "bf16": 1\n },\n "bf16": {},\n "timers": "auto",\n'
        text += ' "zero_optimization": {"stage": 3}\n}'
        problems = found(tmp_path, text)
        assert problems[0] == "'bf16' belongs to the recipe (train.precision); delete line 6"
        assert problems[1].startswith("'timers' is \"auto\" at line 7: ")
        assert len(problems) == 2

    def test_a_key_that_is_also_a_value_or_part_of_one(self, tmp_path: Path) -> None:
        text = '{"zero_optimizatio": "optimizer", "seq_parallel_communication_data_type": "{\\"optimizer\\": {",\n"optimizer"\n : {},\n'
        text += '"zero_optimization": {"stage": 3}}'
        assert found(tmp_path, text)[1:] == ["'optimizer' belongs to the recipe (optim); delete line 2"]

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=4) | st.lists(st.integers(), max_size=3),
        max_leaves=12,
    )

    @given(content=st.dictionaries(st.text(max_size=4).filter(lambda key: "." not in key), json_values, max_size=5))
    def test_every_key_is_found_where_a_file_with_a_key_to_a_line_has_it(self, content: dict[str, Any]) -> None:
        # Written by hand, a key to a line: the expected lines are counted while writing.
        lines, expected = ["{"], {}

        def write(table: dict[str, Any], prefix: str) -> None:
            for number, (key, value) in enumerate(table.items()):
                comma = "," if number < len(table) - 1 else ""
                expected[f"{prefix}{key}"] = len(lines) + 1
                if isinstance(value, dict):
                    lines.append(f"{json.dumps(key)}: {{")
                    write(value, f"{prefix}{key}.")
                    lines.append(f"}}{comma}")
                else:
                    lines.append(f"{json.dumps(key)}: {json.dumps(value)}{comma}")

        write(content, "")
        text = "\n".join([*lines, "}"])
        assert json.loads(text) == content
        assert key_lines(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zero_optimization": {"stage": 3, "stage": 3}}', "the key 'stage' is written twice in one object"),
        ('{"zero_optimization": {"stage": NaN}}', "not valid JSON: NaN is no number"),
    ],
)
def test_json_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(text)
    assert read_ds_config(path) == ({}, [f"--ds_config {path}: {message}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is nested too deep for a DeepSpeed JSON"),
        ('{"steps_per_print": ' + "9" * 5000 + "}", "not valid JSON: Exceeds the limit"),
    ],
)
def test_json_that_python_gives_up_on(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(text)
    content, (problem,) = read_ds_config(path)
    assert content == {}
    assert problem.startswith(f"--ds_config {path}: {message}")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1.5"])
def test_a_number_that_is_not_whole(tmp_path: Path, number: str) -> None:
    text = zero3().replace("{", '{"steps_per_print": ' + number + ", ", 1)
    assert any(
        "'steps_per_print'" in problem and "a whole number, at least 1" in problem for problem in found(tmp_path, text)
    )
