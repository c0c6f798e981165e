import pytest
import torch
from torch import nn

from monteclora.config import LoRAConfig
from monteclora.lora import LoRALinear


def layer(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> LoRALinear:
    torch.manual_seed(0)
    lora = LoRALinear(nn.Linear(12, 7).to(dtype), LoRAConfig(rank=3, alpha=6, dropout=dropout))
    with torch.no_grad():
        lora.lora_B.normal_()
    return lora


def test_output_is_that_of_the_summed_matrix() -> None:
    lora, x = layer(), torch.randn(2, 5, 12)
    expected = x @ (lora.base.weight + 2 * lora.lora_B @ lora.lora_A).T + lora.base.bias
    torch.testing.assert_close(lora(x), expected)


def test_a_new_adapter_changes_nothing_and_starts_kaiming_uniform() -> None:
    base = nn.Linear(4096, 16)
    lora = LoRALinear(base, LoRAConfig(rank=16))
    x = torch.randn(3, 4096)
    assert torch.equal(lora(x), base(x))
    bound = 4096**-0.5
    assert 0.99 * bound < lora.lora_A.abs().max() <= bound
    assert lora.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapter_has_the_dtype_of_the_base_and_only_it_is_trained(dtype: torch.dtype) -> None:
    lora = layer(dtype=dtype)
    x = torch.randn(4, 12, dtype=dtype)
    y = lora(x)
    assert y.dtype == dtype
    y.sum().backward()
    trained = {name for name, p in lora.named_parameters() if p.grad is not None}
    assert trained == {"lora_A", "lora_B"}
    assert all(p.dtype == dtype for p in lora.parameters())
    assert lora.weight is lora.base.weight
    assert lora.bias is lora.base.bias


def test_dropout_acts_on_the_update_alone_and_only_in_training() -> None:
    lora, x = layer(dropout=0.5), torch.randn(400, 12)
    plain = layer()(x)
    assert torch.equal(lora.eval()(x), plain)
    update = lora.train()(x) - lora.base(x)
    assert not torch.allclose(update, plain - lora.base(x))
    means = torch.stack([lora(x) for _ in range(200)]).mean(0)
    assert (means - plain).abs().mean() < 0.15 * update.abs().mean()


def test_sharded_base_is_accepted() -> None:
    base = nn.Linear(12, 7, bias=False)
    base.weight.data = torch.empty(0, dtype=torch.bfloat16)
    lora = LoRALinear(base, LoRAConfig(rank=3))
    assert lora.lora_A.shape == (3, 12)
    assert lora.lora_B.shape == (7, 3)
    assert lora.lora_A.dtype == torch.bfloat16
    assert "rank=3" in repr(lora)


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_base_is_kept(training: bool) -> None:
    assert LoRALinear(nn.Linear(12, 7).train(training), LoRAConfig(rank=3)).training is training
