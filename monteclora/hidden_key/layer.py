"""What one layer of a model drops, and its hooks on attention and feed-forward output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from monteclora.errors import AdapterError
from monteclora.hidden_key.config import HiddenKeyConfig
from monteclora.hidden_key.hidden_cut import hidden_cut

ATTRIBUTE = "hidden_key"
"""Name under which an attention module holds its `LayerDropout`."""


@dataclass
class Switch:
    """One switch for all layers of a model."""

    is_on: bool = True


@dataclass(kw_only=True)
class LayerDropout:
    """The dropping of one layer; it lies on the attention module as `ATTRIBUTE`."""

    config: HiddenKeyConfig

    is_chosen: bool
    """Whether this layer drops at all."""

    switch: Switch

    implementation: str
    """Name of the attention implementation that the layer must have."""

    position_ids: Tensor | None = field(default=None, repr=False)
    """Positions that the attention of this layer was called with last. The feed-forward block does not get them, and
    follows in the same forward, recomputation included."""

    @property
    def drops_keys(self) -> bool:
        """Whether a training forward drops keys at the moment."""
        return self.is_chosen and self.switch.is_on and self.config.key_rate > 0

    @property
    def drops_hidden(self) -> bool:
        """Whether a training forward drops feed-forward output at the moment."""
        return self.is_chosen and self.switch.is_on and self.config.hidden_rate > 0

    def check_implementation(self, module: Any, args: Any) -> None:
        """Forward pre-hook on the attention module: another implementation would drop no keys, nor pass on positions.

        Raises:
            AdapterError: the layer is to drop something, and the model's config names another implementation.
        """
        if not (module.training and (self.drops_keys or self.drops_hidden)):
            return
        if (name := module.config._attn_implementation) != self.implementation:
            raise AdapterError(
                f"the attention implementation was changed to {name} while HiddenKey is attached, and would drop "
                "nothing; detach HiddenKey (HiddenKey.detach), and attach it after the change"
            )

    def cut_hidden(self, module: nn.Module, args: Any, hidden: Tensor) -> Tensor:
        """Forward hook on the module whose output [batch, tokens, features] is the feed-forward output."""
        if not (module.training and self.drops_hidden):
            return hidden
        config = self.config
        return hidden_cut(hidden, config.hidden_rate, config.hidden_pattern, config.rescale, self.position_ids)
