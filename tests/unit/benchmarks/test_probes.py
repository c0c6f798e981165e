"""What the probes see of small steps whose operators, random numbers and bytes are known."""

import pytest
import torch
from torch import Tensor

from benchmarks.probes import Operators, Saved, measure_memory


def test_operators_are_counted_with_views_and_without() -> None:
    x = torch.ones(2, 3)
    with Operators() as seen:
        x.t().view(-1, 2).add(1)
    assert (seen.with_views, seen.without_views, seen.host_reads) == (3, 1, 0)
    seen.clear()
    assert (seen.with_views, seen.without_views) == (0, 0)


def test_operators_of_backward_are_counted() -> None:
    x = torch.ones(2, requires_grad=True)
    with Operators() as seen:
        y = x.exp()
        forward = seen.without_views
        y.backward(torch.ones(2))
    # The ones, and the product of gradient and y.
    assert (forward, seen.without_views) == (1, 3)


@pytest.mark.parametrize(
    ("read", "reads"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: int(x.sum()) + float(x.max()), 2),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: torch.linalg.cholesky(x), 1),
        (lambda x: x @ x, 0),
        (lambda x: int(torch.randint(9, (), device="cpu")), 0),
        (lambda x: int(torch.randint(9, (), device="cpu") + 1), 1),
        (lambda x: x[:, 0].index_put_((x[0] > 0,), x[1, 1]), 1),
        (lambda x: x[torch.tensor([0, 2])], 0),
    ],
)
def test_what_waits_for_a_device_is_a_host_read(read: object, reads: int) -> None:
    x = torch.eye(3)
    assert callable(read)
    with Operators() as seen:
        read(x)
    assert seen.host_reads == reads


def test_random_numbers_count_while_they_live() -> None:
    with Operators() as seen:
        kept, parameter, dropped = torch.randn(10), torch.empty(7).uniform_(), torch.randn(100)
        half = kept[:5]
        derived = dropped * 2
    assert seen.random_bytes(beside=[parameter]) == 440
    del dropped, kept
    # A view keeps all of what it is a view of.
    assert seen.random_bytes(beside=[parameter]) == 40
    assert seen.random_bytes(beside=[]) == 68
    assert len(half) + len(derived) == 105


def test_bytes_saved_for_backward_are_counted_once_and_beside_the_known() -> None:
    x, weight = torch.ones(4, 3, requires_grad=True), torch.ones(3, 3, requires_grad=True)
    saved = Saved([x, weight])
    with saved:
        hidden = x @ weight
        assert saved.bytes == 0
        total = hidden.exp()
        (total * total).sum().backward()
    assert saved.bytes == total.nbytes


def test_memory_is_what_lives_between_steps_and_the_most_within_one() -> None:
    def build() -> object:
        state = torch.zeros(1000)

        def step() -> None:
            large = torch.zeros(5000)
            del large
            small, other = torch.zeros(2000), torch.zeros(1000)
            state.add_(1)
            del small, other

        return step

    memory = measure_memory(build, torch.device("cpu"))  # type: ignore[arg-type]
    assert memory == (4000, 24_000)


def test_memory_of_a_training_step_has_weights_states_and_activations() -> None:
    def build() -> object:
        weight = torch.zeros(100, 100, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], lr=0.1)

        def step() -> Tensor:
            loss = (torch.ones(50, 100) @ weight).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return step

    memory = measure_memory(build, torch.device("cpu"))  # type: ignore[arg-type]
    weights = 3 * 40_000
    # Beside them, between two steps, the number of steps.
    assert weights <= memory.held <= weights + 100
    # The gradient, and at least one more matrix of that size in the optimizer or two of 50 x 100 in forward.
    assert weights + 2 * 40_000 <= memory.peak <= weights + 4 * 40_000
