import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from monteclora.hidden_key import HiddenKeyConfig


def test_the_defaults_are_hidden_key() -> None:
    config = HiddenKeyConfig()
    assert (config.key_method, config.key_pattern) == ("dropkey", "column")
    assert config.hidden_pattern == "element"
    assert config.compensation == "kl"
    assert not config.both_branches
    assert config.layers == "auto"
    assert config.other_dropout == "off"
    assert config.rescale
    assert list(config.problems()) == []
    with pytest.raises(FrozenInstanceError):
        config.key_rate = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"key_rate": 1.0}, "key_rate", "is 1.0; give a probability in [0, 1), 0 switches it off"),
        ({"key_rate": float("nan")}, "key_rate", "is nan; give a probability in [0, 1), 0 switches it off"),
        ({"hidden_rate": -0.1}, "hidden_rate", "is -0.1; give a probability in [0, 1), 0 switches it off"),
        ({"compensation_weight": -1.0}, "compensation_weight", "is -1.0; give 0 (off) or a positive number"),
        ({"compensation_weight": float("inf")}, "compensation_weight", "is inf; give 0 (off) or a positive number"),
        ({"key_method": "dropout"}, "key_method", "is 'dropout'; choose `dropkey` or `dropattention`"),
        ({"key_pattern": "row"}, "key_pattern", "is 'row'; choose `element` or `column` or `span`"),
        ({"hidden_pattern": "row"}, "hidden_pattern", "is 'row'; choose `element` or `column` or `span`"),
        ({"compensation": "l2"}, "compensation", "is 'l2'; choose `none` or `kl` or `js`"),
        ({"layers": "lower"}, "layers", "is 'lower'; choose `auto` or `all` or `upper_half`"),
        ({"other_dropout": "on"}, "other_dropout", "is 'on'; choose `off` or `kept`"),
        (
            {"compensation": "js", "both_branches": True},
            "both_branches",
            "is on, but only the compensation `kl` has two stochastic passes; switch it off",
        ),
    ],
)
def test_what_is_out_of_range_is_said(settings: dict[str, object], field: str, message: str) -> None:
    assert list(replace(HiddenKeyConfig(), **settings).problems()) == [(field, message)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("key_rate", "0.1", "is '0.1'; give a number"),
        ("hidden_rate", None, "is None; give a number"),
        ("compensation_weight", True, "is True; give a number"),
        ("key_pattern", 1, "is 1; give `element` or `column` or `span`"),
        ("layers", ["all"], "is ['all']; give `auto` or `all` or `upper_half`"),
        ("rescale", None, "is None; give True or False"),
        ("both_branches", 1, "is 1; give True or False"),
    ],
)
def test_a_value_of_a_wrong_type_is_said(field: str, value: object, message: str) -> None:
    assert list(replace(HiddenKeyConfig(), **{field: value}).problems()) == [(field, message)]  # type: ignore[arg-type]


def test_types_come_before_ranges() -> None:
    config = HiddenKeyConfig(key_rate=2.0, hidden_rate="0.1")  # type: ignore[arg-type]
    assert list(config.problems()) == [("hidden_rate", "is '0.1'; give a number")]


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.999])
def test_rates_from_0_up_to_1_are_fine(rate: float) -> None:
    assert list(HiddenKeyConfig(key_rate=rate, hidden_rate=rate).problems()) == []


@pytest.mark.parametrize(
    ("kind", "weight", "expected"), [("kl", 1.0, True), ("js", 0.1, True), ("kl", 0.0, False), ("none", 1.0, False)]
)
def test_whether_there_is_a_second_pass(kind: str, weight: float, expected: bool) -> None:
    config = HiddenKeyConfig(compensation=kind, compensation_weight=weight)  # type: ignore[arg-type]
    assert config.has_compensation is expected


def test_a_configuration_is_read_without_torch() -> None:
    code = "import sys, monteclora.hidden_key as h; h.HiddenKeyConfig(); assert 'torch' not in sys.modules; dir(h)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    import monteclora.hidden_key as package

    with pytest.raises(AttributeError, match="no attribute 'HiddenCut'"):
        _ = package.HiddenCut
    assert dir(package) == sorted(package.__all__)
    assert all(callable(getattr(package, name)) for name in package.__all__)
