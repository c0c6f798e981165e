"""Train the small tokenizer of the demo corpus: a lossless byte-fallback BPE, as LLaMA's is."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

MIN_VOCAB_SIZE = 320
"""256 byte pieces, 3 special pieces and a little room for characters."""

_CHARACTERS_PER_DOMAIN = 1_500_000


def train_tokenizer(domains: Sequence[Sequence[str]], vocab_size: int) -> bytes:
    """Return the sentencepiece model of a BPE trained on the same amount of text from each domain.

    Decoding gives back every text as it was, but for U+2581, the engine's own mark for a space. Training is bounded:
    of each domain, the first texts up to 1.5 million characters are used. Equal input gives equal bytes.

    Args:
        domains: texts of each domain, in the order to use them.
        vocab_size: pieces wanted; there are less if the text is too short for so many.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # Neither paths nor thread counts reach the trainer: they would be recorded in the model.
        sentence_iterator=_lines(domains),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=False,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _lines(domains: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines of each domain, up to the same number of characters; the newline itself stays a byte piece."""
    budget = min(_CHARACTERS_PER_DOMAIN, *(sum(map(len, texts)) for texts in domains))
    for texts in domains:
        left = budget
        for line in (line for text in texts for line in text.split("\n")):
            if left <= 0:
                break
            left -= len(line) + 1
            if line:
                yield line
