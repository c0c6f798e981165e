import pytest
import torch
from torch import nn

from monteclora.lora import LoRALinear


def layer(dropout: float = 0.0, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> LoRALinear:
    torch.manual_seed(0)
    lora = LoRALinear(nn.Linear(12, 7, bias=bias).to(dtype), rank=3, scaling=2, dropout=dropout)
    with torch.no_grad():
        lora.lora_B.normal_()
    return lora


@pytest.mark.parametrize("bias", [False, True])
def test_output_is_that_of_the_summed_matrix(bias: bool) -> None:
    lora, x = layer(bias=bias), torch.randn(2, 5, 12)
    expected = x @ (lora.weight + 2 * lora.lora_B @ lora.lora_A).T + (lora.bias if bias else 0)
    torch.testing.assert_close(lora(x), expected)
    torch.testing.assert_close(lora.update(), 2 * lora.lora_B @ lora.lora_A)


def test_a_new_adapter_changes_nothing_and_starts_kaiming_uniform() -> None:
    base = nn.Linear(4096, 16)
    lora = LoRALinear(base, rank=15, scaling=2, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 4096)
    assert torch.equal(lora(x), base(x))
    bound = 4096**-0.5
    assert 0.99 * bound < lora.lora_A.abs().max() <= bound
    assert lora.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert torch.equal(lora.lora_B, torch.zeros(16, 15))


def test_first_values_depend_on_the_generator_alone() -> None:
    def first(seed: int, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return LoRALinear(nn.Linear(12, 7), rank=3, scaling=2, generator=generator, dtype=dtype).lora_A.detach()

    state = torch.get_rng_state()
    nn.Linear(12, 7)  # what the layers below draw for themselves
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    one = first(0, torch.float32)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(first(0, torch.bfloat16), one.bfloat16())
    assert not torch.equal(first(1, torch.float32), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapter_has_the_dtype_of_the_base_and_only_it_is_trained(dtype: torch.dtype) -> None:
    lora = layer(dtype=dtype)
    y = lora(torch.randn(4, 12, dtype=dtype))
    assert y.dtype == dtype
    y.sum().backward()
    assert {name for name, p in lora.named_parameters() if p.grad is not None} == {"lora_A", "lora_B"}
    assert {name for name, p in lora.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert all(p.dtype == dtype for p in lora.parameters())


def test_an_adapter_in_fp32_beside_a_base_in_half_precision() -> None:
    lora = LoRALinear(nn.Linear(12, 7).bfloat16(), rank=3, scaling=2, dtype=torch.float32)
    y = lora(torch.randn(4, 12, dtype=torch.bfloat16))
    y.sum().backward()
    assert y.dtype == lora.weight.dtype == torch.bfloat16
    assert lora.lora_A.dtype == lora.lora_B.dtype == lora.update().dtype == torch.float32
    assert lora.lora_B.grad is not None
    assert lora.lora_B.grad.dtype == torch.float32


def test_the_base_is_taken_over_under_its_own_names_and_given_back() -> None:
    base = nn.Linear(12, 7)
    names = base.state_dict().keys()
    lora = LoRALinear(base, rank=3, scaling=2)
    assert lora.weight is base.weight
    assert lora.bias is base.bias
    assert lora.state_dict().keys() == names | {"lora_A", "lora_B"}
    plain = lora.eval().plain()
    assert type(plain) is nn.Linear
    assert plain.weight is base.weight
    assert plain.bias is base.bias
    assert not plain.training
    assert layer(bias=False).plain().bias is None


def test_dropout_acts_on_the_update_alone_and_only_in_training() -> None:
    lora, x = layer(dropout=0.5), torch.randn(400, 12)
    plain, frozen = layer()(x), nn.functional.linear(x, lora.weight, lora.bias)
    assert torch.equal(lora.eval()(x), plain)
    update = lora.train()(x) - frozen
    assert not torch.allclose(update, plain - frozen)
    means = torch.stack([lora(x) for _ in range(200)]).mean(0)
    assert (means - plain).abs().mean() < 0.15 * update.abs().mean()
    lora.lora_B.data.zero_()
    assert torch.equal(lora(x), frozen)


def test_sharded_base_is_accepted() -> None:
    base = nn.Linear(12, 7, bias=False)
    base.weight.data = torch.empty(0, dtype=torch.bfloat16)
    lora = LoRALinear(base, rank=3, scaling=2)
    assert lora.lora_A.shape == (3, 12)
    assert lora.lora_B.shape == (7, 3)
    assert lora.lora_A.dtype == torch.bfloat16


def test_description_says_what_the_layer_is() -> None:
    assert repr(layer(dropout=0.1)) == (
        "LoRALinear(in_features=12, out_features=7, bias=True, rank=3, scaling=2, dropout=0.1)"
    )


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_base_is_kept(training: bool) -> None:
    assert LoRALinear(nn.Linear(12, 7).train(training), rank=3, scaling=2).training is training
