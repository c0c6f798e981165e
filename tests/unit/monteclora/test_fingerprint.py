"""The identity of a base: equal for equal weights, whatever their order and precision, different for others."""

import contextlib
import hashlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from monteclora import LoRAConfig, MonteCLoRAConfig, attach_adapter
from monteclora.fingerprint import NUM_VALUES, adapter_fingerprint, base_fingerprint, frozen_weights, is_whole
from tests.unit.monteclora.models import llama, roberta


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(40, 30, generator=generator) for name in ("a", "b.c", "b.d")}


def test_it_is_sha256_of_names_shapes_and_spaced_values() -> None:
    """Written out by hand for one weight of 512 values, every second of which counts; all are exact in bf16."""
    weight = torch.arange(512, dtype=torch.float32).view(2, 256) % 100
    high_halves = weight.view(-1)[::2].contiguous().numpy().view("<u2")[1::2]
    inner = hashlib.sha256(high_halves.tobytes()).hexdigest()
    assert (
        base_fingerprint([("layer.weight", weight)])
        == hashlib.sha256(f"layer.weight [2, 256] {inner}".encode()).hexdigest()
    )


def test_order_layout_and_precision_do_not_matter() -> None:
    own = base_fingerprint(weights().items())
    assert len(own) == 64
    assert base_fingerprint(reversed(list(weights().items()))) == own
    assert base_fingerprint((name, value.bfloat16()) for name, value in weights().items()) == own
    assert base_fingerprint((name, value.T.contiguous().T) for name, value in weights().items()) == own
    assert base_fingerprint((name, value.requires_grad_()) for name, value in weights().items()) == own


def test_names_shapes_values_and_number_matter() -> None:
    found = {
        base_fingerprint(weights().items()),
        base_fingerprint(weights(1).items()),
        base_fingerprint([*weights().items()][:2]),
        base_fingerprint((name.upper(), value) for name, value in weights().items()),
        base_fingerprint((name, value.view(30, 40)) for name, value in weights().items()),
        base_fingerprint([]),
    }
    assert len(found) == 6


@given(st.integers(1, 2 * NUM_VALUES))
def test_small_weights_count_in_full(size: int) -> None:
    weight = torch.zeros(size)
    own = base_fingerprint([("w", weight)])
    last = weight.clone()
    # The last of the values that are looked at.
    last[min(NUM_VALUES, size) - 1 if size <= NUM_VALUES else (NUM_VALUES - 1) * size // NUM_VALUES] = 1
    assert base_fingerprint([("w", last)]) != own


def test_one_weight_is_looked_at_at_a_time() -> None:
    alive = 0

    def stream() -> Iterator[tuple[str, Tensor]]:
        nonlocal alive
        for name, value in weights().items():
            alive += 1
            assert alive == 1
            yield name, value
            alive -= 1

    assert base_fingerprint(stream()) == base_fingerprint(weights().items())


@pytest.mark.parametrize("config", [LoRAConfig(rank=2), MonteCLoRAConfig(rank=2)])
def test_an_adapter_tells_its_base(config: LoRAConfig) -> None:
    plain = dict(llama().named_parameters())
    adapter = attach_adapter(llama(), config)
    names = [f"{name}.weight" for name in adapter.layers]
    assert list(frozen_weights(adapter)) == names
    assert adapter_fingerprint(adapter) == base_fingerprint((name, plain[name]) for name in names)
    assert adapter_fingerprint(adapter) != adapter_fingerprint(attach_adapter(llama(seed=1), config))
    assert adapter_fingerprint(adapter) != adapter_fingerprint(
        attach_adapter(roberta(), LoRAConfig(rank=2, targets=("query",)))
    )


def test_sharded_weights_are_gathered_one_by_one() -> None:
    adapter = attach_adapter(llama(), LoRAConfig(rank=2))
    wanted = adapter_fingerprint(adapter)
    held = {id(weight): weight.data for weight in frozen_weights(adapter).values()}
    for weight in frozen_weights(adapter).values():
        weight.data = torch.empty(0)
    assert adapter_fingerprint(adapter) is None
    whole: list[int] = []

    @contextlib.contextmanager
    def gather(weight: Tensor) -> Iterator[None]:
        whole.append(id(weight))
        weight.data = held[id(weight)]
        assert sum(is_whole(w) for w in frozen_weights(adapter).values()) == 1
        yield
        weight.data = torch.empty(0)

    assert adapter_fingerprint(adapter, gather) == wanted
    assert whole == [id(weight) for weight in frozen_weights(adapter).values()]


def test_what_holds_no_values_is_not_whole() -> None:
    assert is_whole(torch.zeros(1))
    assert not is_whole(torch.empty(0))
    assert not is_whole(torch.empty(3, device="meta"))
