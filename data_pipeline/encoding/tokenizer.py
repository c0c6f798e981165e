"""What the pipeline asks of a tokenizer: text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import PipelineError


class TokenizerError(PipelineError):
    """A tokenizer cannot be loaded or lacks what is asked of it; the message names the file."""


class MarkedText(NamedTuple):
    """Ids of a text in which special tokens are written by name, and where each comes from.

    Attributes:
        ids: int32 [tokens].
        starts: int64 [tokens], number of the first character of each token.
        ends: int64 [tokens], number of the character after its last; equal to `starts` where a token has no character.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class Tokenizer(Protocol):
    """What the pipeline needs of a tokenizer.

    Attributes:
        vocab_size: rows an embedding needs, the largest id plus one.
        bos_id: id of the begin-of-sequence token, None if there is none.
        eos_id: id of the end-of-sequence token, None if there is none.
        special_names: names of all special tokens, BOS and EOS among them; in a text they are plain text.
        unknown_names: names of tokens that the files beside the tokenizer add, and that it cannot encode itself.
        named_tokens: names by use, as chat templates ask for them: `bos_token`, `eos_token` and so on.
        fingerprint: hex sha256 of the tokenizer file.
        files: the tokenizer file and its companions, to copy beside an exported model.
        engine: the library that encodes, with its version.
        engine_note: why it is not the fast one although that was asked for; else empty.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    special_names: tuple[str, ...]
    unknown_names: tuple[str, ...]
    named_tokens: dict[str, str]
    fingerprint: str
    files: list[Path]
    engine: str
    engine_note: str

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, of any length, without BOS and EOS; names of special tokens in it are plain text."""
        ...

    def encode_ids(self, text: str) -> NDArray[np.int32]:
        """The same ids as an array."""
        ...

    def encode_marked(self, text: str) -> MarkedText:
        """The ids of `text`, in which the names of special tokens are those tokens, and where each comes from."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        ...

    def check_engine(self, texts: Iterable[str]) -> list[str]:
        """Compare the fast engine with the reference, which takes over for good where their ids differ.

        Returns:
            The texts whose ids differ; none where the reference encodes anyway.
        """
        ...


def special_ids(tokenizer: Tokenizer, path: Path, *, bos: bool, eos: bool) -> tuple[list[int], list[int]]:
    """The ids to put before and after every document.

    Raises:
        TokenizerError: a token is asked for that the tokenizer does not have.
    """
    for name, wanted, token in (("bos", bos, tokenizer.bos_id), ("eos", eos, tokenizer.eos_id)):
        if wanted and token is None:
            raise TokenizerError(
                f"{name} = true, but the tokenizer {path} has no {name} token; "
                f"set {name} = false, or name it in tokenizer_config.json beside tokenizer.json"
            )
    return (
        [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else [],
        [tokenizer.eos_id] if eos and tokenizer.eos_id is not None else [],
    )
