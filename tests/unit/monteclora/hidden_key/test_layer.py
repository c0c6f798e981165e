import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from monteclora.errors import AdapterError
from monteclora.hidden_key import HiddenKeyConfig
from monteclora.hidden_key.layer import LayerDropout, Switch


def layer(is_chosen: bool = True, **settings: float) -> LayerDropout:
    config = HiddenKeyConfig(**settings)  # type: ignore[arg-type]
    return LayerDropout(config=config, is_chosen=is_chosen, switch=Switch(), implementation="ours")


def test_a_chosen_layer_drops_where_its_rates_say() -> None:
    assert (layer().drops_keys, layer().drops_hidden) == (True, True)
    assert (layer(key_rate=0).drops_keys, layer(key_rate=0).drops_hidden) == (False, True)
    assert (layer(hidden_rate=0).drops_keys, layer(hidden_rate=0).drops_hidden) == (True, False)
    assert (layer(False).drops_keys, layer(False).drops_hidden) == (False, False)


def test_one_switch_is_for_all() -> None:
    first, second = layer(), layer()
    second.switch = first.switch
    first.switch.is_on = False
    assert (second.drops_keys, second.drops_hidden) == (False, False)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_hook_cuts_in_training_only(is_training: bool) -> None:
    hidden = torch.ones(2, 3, 64)
    cut = layer(hidden_rate=0.5).cut_hidden(nn.Identity().train(is_training), (), hidden)
    assert (cut is hidden) is not is_training
    assert set(cut.flatten().tolist()) == ({0.0, 2.0} if is_training else {1.0})


@pytest.mark.parametrize(
    ("dropout", "is_training", "name", "is_refused"),
    [
        (layer(), True, "ours", False),
        (layer(), True, "sdpa", True),
        (layer(), False, "sdpa", False),
        (layer(hidden_rate=0), True, "sdpa", True),
        (layer(key_rate=0), True, "sdpa", True),
        (layer(key_rate=0, hidden_rate=0), True, "sdpa", False),
        (layer(False), True, "sdpa", False),
    ],
)
def test_another_attention_is_refused_where_something_drops(
    dropout: LayerDropout, is_training: bool, name: str, is_refused: bool
) -> None:
    attention = SimpleNamespace(training=is_training, config=SimpleNamespace(_attn_implementation=name))
    if not is_refused:
        dropout.check_implementation(attention, ())
        return
    message = (
        "the attention implementation was changed to sdpa while HiddenKey is attached, and would drop nothing; detach "
        "HiddenKey (HiddenKey.detach), and attach it after the change"
    )
    with pytest.raises(AdapterError, match=f"^{re.escape(message)}$"):
        dropout.check_implementation(attention, ())
