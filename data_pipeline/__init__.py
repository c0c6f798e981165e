"""Text on shared storage becomes rows of token ids, in an order that does not depend on the world size.

The public names are loaded on first use, so that `import data_pipeline.config` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig, SourceConfig
    from data_pipeline.encoding.loading import load_tokenizer
    from data_pipeline.stream.token_stream import TokenStream

_MODULE_OF = {
    "TokenStream": "stream.token_stream",
    "DataConfig": "config",
    "SourceConfig": "config",
    "load_tokenizer": "encoding.loading",
}

__all__ = ["DataConfig", "SourceConfig", "TokenStream", "load_tokenizer"]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
