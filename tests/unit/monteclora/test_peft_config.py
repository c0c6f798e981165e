"""Settings as PEFT writes and reads them, with PEFT's own code as the judge."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, TaskType
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from monteclora import LoRAConfig
from monteclora.peft_config import from_peft, more_than_lora, to_peft

component = st.sampled_from(["a", "b", "0"])
names = st.lists(component, min_size=1, max_size=3).map(".".join)
layer_sets = st.sets(names, min_size=1, max_size=8).map(sorted)


def as_peft_reads_it(written: dict[str, Any], name: str) -> tuple[int, float]:
    """Rank and scale that PEFT gives a layer, by the rule of peft.tuners.lora.model."""
    config = LoraConfig(**{key: value for key, value in written.items() if key not in ("peft_type", "auto_mapping")})
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)
    return rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)


@st.composite
def adapters(draw: st.DrawFn) -> tuple[LoRAConfig, list[str]]:
    layers = draw(layer_sets)
    pattern = (
        st.sampled_from(layers) | st.sampled_from(layers).map(lambda name: name.rpartition(".")[2]) | st.just("*a*")
    )
    rslora = draw(st.booleans())
    alpha = st.floats(0.5, 8).filter(lambda x: x > 0)
    config = LoRAConfig(
        rank=draw(st.integers(1, 9)),
        alpha=draw(alpha if rslora else st.none() | alpha | st.integers(1, 9)),
        rank_pattern=draw(st.dictionaries(pattern, st.integers(1, 9), max_size=3)),
        alpha_pattern=draw(st.dictionaries(pattern, alpha, max_size=3)),
        rslora=rslora,
        targets=tuple(layers),
    )
    return config, layers


@given(adapters())
def test_peft_gives_every_layer_its_rank_and_scale(case: tuple[LoRAConfig, list[str]]) -> None:
    config, layers = case
    written = to_peft(config, layers)
    for name in layers:
        assert as_peft_reads_it(written, name) == (config.rank_of(name), config.scaling_of(name))


@given(adapters())
def test_what_was_written_is_read_back(case: tuple[LoRAConfig, list[str]]) -> None:
    config, layers = case
    again = from_peft(to_peft(config, layers), layers, layers, layers)
    for name in layers:
        assert (again.rank_of(name), again.scaling_of(name)) == (config.rank_of(name), config.scaling_of(name))
    assert not list(again.problems())


@given(layer_sets, st.data())
def test_patterns_of_peft_are_read_as_it_reads_them(layers: list[str], data: st.DataObject) -> None:
    pattern = st.sampled_from([*layers, *("^" + re.escape(name) for name in layers), ".*a", r".*\.0.*", "b|c", "a_?"])
    written = {
        "r": data.draw(st.integers(1, 9)),
        "lora_alpha": data.draw(st.integers(1, 9)),
        "rank_pattern": data.draw(st.dictionaries(pattern, st.integers(1, 9), max_size=3)),
        "alpha_pattern": data.draw(st.dictionaries(pattern, st.floats(0.5, 8), max_size=3)),
        "use_rslora": data.draw(st.booleans()),
    }
    config = from_peft(written, layers, layers, layers)
    for name in layers:
        assert (config.rank_of(name), config.scaling_of(name)) == pytest.approx(as_peft_reads_it(written, name))


LAYERS = [f"model.layers.{i}.{last}" for i in (0, 1) for last in ("attn.q_proj", "mlp.up_proj", "mlp.down_proj")]


def test_patterns_are_few_and_exact() -> None:
    config = LoRAConfig(rank=8, rank_pattern={"q_proj": 4, "model.layers.1.mlp.up*": 2}, targets=("*_proj",))
    written = to_peft(config, LAYERS)
    assert (written["r"], written["lora_alpha"]) == (8, 16)
    assert written["rank_pattern"] == {
        "q_proj": 4,
        r"^model\.layers\.0\.mlp\.up_proj": 8,
        r"^model\.layers\.1\.mlp\.up_proj": 2,
    }
    assert written["alpha_pattern"].keys() == written["rank_pattern"].keys()
    assert all(alpha == 2 * written["rank_pattern"][name] for name, alpha in written["alpha_pattern"].items())
    assert written["target_modules"] == LAYERS
    assert not to_peft(LoRAConfig(), LAYERS)["rank_pattern"]


@pytest.mark.parametrize(("alpha", "written"), [(7.0, 7), (7.5, 7.5), (None, 32)])
def test_a_whole_alpha_is_an_integer(alpha: float | None, written: float) -> None:
    found = to_peft(LoRAConfig(rank=16, alpha=alpha), LAYERS)["lora_alpha"]
    assert found == written
    assert type(found) is type(written)


def test_plain_targets_stay_as_they_are() -> None:
    config = LoRAConfig(targets=("q_proj", "up_proj"))
    written = to_peft(config, [name for name in LAYERS if "down" not in name])
    assert written["target_modules"] == ["q_proj", "up_proj"]
    peft = LoraConfig(target_modules=written["target_modules"])
    assert [bool(check_target_module_exists(peft, name)) for name in LAYERS] == ["down" not in name for name in LAYERS]


@pytest.mark.parametrize(
    ("model_class", "saved", "task"),
    [
        ("LlamaForCausalLM", [], TaskType.CAUSAL_LM),
        ("GPT2LMHeadModel", ["lm_head.weight"], TaskType.CAUSAL_LM),
        ("RobertaForSequenceClassification", ["classifier.dense.weight"], TaskType.SEQ_CLS),
        ("LlamaForSequenceClassification", ["score.weight"], TaskType.SEQ_CLS),
        ("RobertaForSequenceClassification", [], None),
        ("RobertaModel", [], None),
        ("", [], None),
    ],
)
def test_the_class_of_the_model_tells_the_task(model_class: str, saved: list[str], task: TaskType | None) -> None:
    config = LoRAConfig(modules_to_save=("lm_head", "classifier", "score"))
    written = to_peft(config, LAYERS, saved, model_class=model_class, model_library="library.models")
    assert written["task_type"] == task
    mapping = {"base_model_class": model_class, "parent_library": "library.models"}
    assert written["auto_mapping"] == (mapping if model_class and task is None else None)


def test_modules_in_full_are_named_once_and_from_outside() -> None:
    config = LoRAConfig(modules_to_save=("classifier", "*norm", "out_proj"))
    saved = [
        "classifier.dense.weight",
        "classifier.dense.bias",
        "classifier.out_proj.weight",
        "model.norm.weight",
        "tied.weight",
    ]
    assert to_peft(config, LAYERS, saved)["modules_to_save"] == ["classifier", "model.norm", "tied"]
    assert to_peft(config, LAYERS)["modules_to_save"] is None


def test_modules_in_full_are_read_by_the_ends_of_their_names() -> None:
    modules = ["model", *LAYERS, "pre_classifier", "classifier", "classifier.dense", "classifier.out_proj"]
    written = {
        "r": 2,
        "lora_alpha": 2,
        "modules_to_save": ["classifier", "score"],
        "target_modules": ["q_proj", "dense"],
    }
    config = from_peft(written, [name for name in LAYERS if "q_proj" in name], [*LAYERS, "classifier.dense"], modules)
    assert config.modules_to_save == ("pre_classifier", "classifier")
    assert config.targets == ("q_proj", "dense")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": None}, "r is None"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
        ({"lora_dropout": []}, r"lora_dropout is \[\]"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern q_proj is 'x'"),
        ({"rank_pattern": [1]}, r"rank_pattern is \[1\], not an object"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern holds '\(', which is no regular expression"),
    ],
)
def test_settings_of_no_use_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_peft({"r": 2, "lora_alpha": 2} | change, LAYERS, LAYERS, LAYERS)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("use_qalora", True),
        ("lora_bias", True),
        ("bias", "lora_only"),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("target_parameters", ["experts.weight"]),
        ("trainable_token_indices", [3]),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("alora_invocation_tokens", [1]),
        ("use_bdlora", {"nblocks": 2}),
        ("monteclora_config", {"num_samples": 8}),
    ],
)
def test_more_than_a_lora_is_recognised(setting: str, value: object) -> None:
    plain = LoraConfig(r=2, target_modules=["q_proj"]).to_dict()
    assert list(more_than_lora(plain)) == []
    assert list(more_than_lora(plain | {setting: value})) == [f"{setting} = {value!r}"]


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", None])
def test_starts_that_leave_the_base_alone_are_plain(init: object) -> None:
    assert list(more_than_lora({"init_lora_weights": init})) == []
