import pytest
from torch import nn
from transformers import AlbertConfig, AlbertModel, BartConfig, BartModel, PreTrainedModel

from monteclora.errors import AdapterError
from monteclora.hidden_key.stack import find_layers
from tests.unit.monteclora.hidden_key.tiny_models import MODELS, llama


@pytest.mark.parametrize(
    ("kind", "attention", "feed_forward"),
    [
        ("llama", "model.layers.{}.self_attn", "model.layers.{}.mlp"),
        ("roberta", "roberta.encoder.layer.{}.attention.self", "roberta.encoder.layer.{}.output.dropout"),
        ("gpt2", "transformer.h.{}.attn", "transformer.h.{}.mlp"),
        ("distilbert", "distilbert.transformer.layer.{}.attention", "distilbert.transformer.layer.{}.ffn"),
    ],
)
def test_layers_are_found_in_order(kind: str, attention: str, feed_forward: str) -> None:
    model = MODELS[kind]()
    layers = find_layers(model)
    assert len(layers) == model.config.num_hidden_layers
    for index, layer in enumerate(layers):
        assert layer.attention is model.get_submodule(attention.format(index))
        assert layer.feed_forward is model.get_submodule(feed_forward.format(index))


def bart() -> PreTrainedModel:
    return BartModel(BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                                decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=20,
                                max_position_embeddings=16))  # fmt: skip


def albert() -> PreTrainedModel:
    """Its `ffn` is a linear layer, which an adapter may replace."""
    return AlbertModel(AlbertConfig(hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=16,
                                    num_hidden_layers=2, vocab_size=20))  # fmt: skip


@pytest.mark.parametrize("model", [bart, albert])
def test_unknown_layers_are_refused_with_what_was_looked_for(model: type[PreTrainedModel]) -> None:
    with pytest.raises(AdapterError) as caught:
        find_layers(model())
    assert str(caught.value) == (
        f"{type(model()).__name__} has no stack of layers that HiddenKey knows; it looks for a ModuleList whose layers "
        "hold self_attn and mlp (LLaMA); attn and mlp (GPT-2); attention.self and output.dropout (BERT, RoBERTa); "
        "attention and ffn (DistilBERT), with attention that goes through transformers' AttentionInterface"
    )


def test_a_model_with_its_own_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(AdapterError, match="has no stack of layers that HiddenKey knows"):
        find_layers(model)


def test_several_stacks_are_refused() -> None:
    model = llama()
    model.tower = nn.Module()
    model.tower.layers = llama(num_layers=1).model.layers
    with pytest.raises(
        AdapterError,
        match=r"LlamaForCausalLM has several stacks of layers \(model.layers, tower.layers\); attach HiddenKey to the "
        "part of the model that holds one",
    ):
        find_layers(model)
    assert len(find_layers(model.model)) == 4
