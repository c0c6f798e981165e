import pytest
import torch

from monteclora.hidden_key.config import Pattern
from monteclora.hidden_key.hidden_cut import hidden_cut

HIDDEN = torch.rand(6, 10, 8, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("pattern", ["element", "column", "span"])
@pytest.mark.parametrize("rescale", [True, False])
def test_each_element_is_zeroed_or_scaled(pattern: Pattern, rescale: bool) -> None:
    torch.manual_seed(0)
    cut = hidden_cut(HIDDEN, 0.25, pattern, rescale)
    kept = HIDDEN / 0.75 if rescale else HIDDEN
    dropped = cut == 0
    torch.testing.assert_close(cut, torch.where(dropped, 0.0, kept))
    assert 0.1 < dropped.double().mean() < 0.4
    if pattern == "column":
        assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
        assert not torch.equal(dropped[0], dropped[1])
    if pattern == "span":
        assert torch.equal(dropped, dropped[..., :1].expand_as(dropped))
        assert set(dropped[..., 0].sum(1).tolist()) <= {2, 3}


def test_spans_stay_in_their_documents() -> None:
    torch.manual_seed(0)
    position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    dropped = hidden_cut(HIDDEN, 0.5, "span", True, position_ids)[..., 0] == 0
    assert dropped[:, :4].sum(1).tolist() == [2] * 6
    assert dropped[:, 4:].sum(1).tolist() == [3] * 6


@pytest.mark.parametrize("pattern", ["element", "column", "span"])
def test_rescaling_keeps_the_mean(pattern: Pattern) -> None:
    torch.manual_seed(0)
    cut = hidden_cut(torch.ones(4000, 5, 6, dtype=torch.float64), 0.3, pattern)
    spread = cut.mean(dim=(1, 2)).std().item() / 4000**0.5
    assert cut.mean().item() == pytest.approx(1.0, abs=4 * spread)


def test_gradients_go_through_what_is_kept() -> None:
    for pattern in ("element", "column", "span"):
        hidden = HIDDEN.clone().requires_grad_()
        torch.manual_seed(0)
        cut = hidden_cut(hidden, 0.25, pattern)  # type: ignore[arg-type]
        cut.sum().backward()
        torch.testing.assert_close(hidden.grad, (cut != 0) / 0.75)
