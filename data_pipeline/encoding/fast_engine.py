"""A faster engine in front of a tokenizer's reference library: gigatoken, used only where its ids are the same.

What it is not given, or not used for, and why:

- Texts that hold the name of a special or added token: it takes the name for the token, the reference for text.
- A tokenizer whose construction leaves room for another order of merges: `UnsupportedError` says which.
- A run in which it gave other ids for any of the texts it was tried on: those below, and documents of the run itself.
- A run in which it has failed on a text: the reference encodes that one and all later ones.

Its memory of words grows with every new word, without a bound of its own, so it is built anew now and then.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

REBUILT_AFTER = 128_000_000
"""Characters after which the engine is built anew. Measured: 1.2 bytes of memory per character of source code, 5.5 of
random words; building takes 0.02 to 0.2 s, encoding so much text 1 to 6 s."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class UnsupportedError(ValueError):
    """The fast engine cannot be trusted with a tokenizer; the message says why."""


def installed_version() -> str | None:
    """Name and version of the fast engine, None where it is not installed."""
    if importlib.util.find_spec("gigatoken") is None:
        return None
    return f"gigatoken {importlib.metadata.version('gigatoken')}"


def _guarded(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """`call`, with whatever goes wrong inside the engine as UnsupportedError."""

    def guarded(*arguments: _P.args, **named: _P.kwargs) -> _T:
        try:
            return call(*arguments, **named)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic in its native code is no Exception
            raise UnsupportedError(str(error) or type(error).__name__) from error

    return guarded


class FastEngine:
    """gigatoken for one tokenizer, with bounded memory."""

    def __init__(self, build: Callable[[], Any], names: Sequence[str], patterns: Sequence[str] = ()) -> None:
        """Build the engine.

        Args:
            build: makes a new gigatoken.Tokenizer.
            names: texts that hold one of these are left to the reference.
            patterns: regular expressions of more such names.

        Raises:
            UnsupportedError: it cannot be built.
        """
        self._build = _guarded(build)
        self._engine = self._build()
        self._left = REBUILT_AFTER
        expressions = [*map(re.escape, sorted(names)), *patterns]
        self._find_name = re.compile("|".join(expressions)).search if expressions else _never

    def encode(self, text: str) -> NDArray[np.int32] | None:
        """The ids of `text`, or None where the reference has to say.

        Raises:
            UnsupportedError: it failed, and is not to be asked again.
        """
        if self._find_name(text):
            return None
        if self._left < 0:
            self._engine, self._left = self._build(), REBUILT_AFTER
        self._left -= len(text)
        return self._encode(text)

    def agrees(self, text: str, reference: Callable[[str], NDArray[np.int32]]) -> bool:
        """Whether this engine gives the ids of `reference`, or leaves the text to it."""
        try:
            ids = self.encode(text)
        except UnsupportedError:
            return False
        return ids is None or np.array_equal(ids, reference(text))

    @_guarded
    def _encode(self, text: str) -> NDArray[np.int32]:
        # Ids are below 2^31: the same bits are int32.
        ids: NDArray[np.int32] = self._engine.encode(text).view(np.int32)
        return ids


def _never(text: str) -> None:
    return None


def _runs(unit: str) -> list[str]:
    """Runs of `unit`: of some lengths alone, of all lengths up to 40 among others."""
    among = "".join(f"a{unit * length}b" for length in (*range(1, 41), 63, 64, 65, 127, 128, 129))
    return [unit * length for length in (1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 1000)] + [among]


TRICKY_TEXTS: tuple[str, ...] = (
    "",
    "Hello world",
    " leading",
    "trailing ",
    "  two  and   three    spaces  ",
    "\n  from",
    "\n\nafter\n\n\nlines \n with \n  ends\n",
    "tabs\tand\t\ttabs\t \t",
    "carriage\r\nreturns\r\rand\n\r",
    "form\x0cfeed\x0bvertical\x1cseparators\x85next\u2028line\u2029paragraph",
    "nul\x00inside\x00\x00 and \x01\x02\x1b[0m\x7f",
    "\ufeffbyte order mark\ufeffagain",
    "nbsp\u00a0thin\u2009ideographic\u3000zero\u200bwidth\u200djoiner\u2060",
    "cafe\u0301 e\u0301\u0301 A\u030a \u0041\u0300\u0301\u0302 o\u0308\u0304",
    "naïve façade Ærøskøbing Straße ŁÓDŹ İstanbul ıI ǅ ﬁ ﬀ Å",
    "Привет, мир! Ελληνικά: αβγ. שלום עולם مرحبا بالعالم",
    "नमस्ते दुनिया ภาษาไทย ខ្មែរ தமிழ் 한국어 조선글 ㄱㅏ 각",
    "中文字符测试，日本語のテキスト。カタカナ ﾊﾝｶｸ 漢字かな交じり文",
    "😀😃 👍🏽 👨‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ ☃️ 🏳️‍🌈 a😀b",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 𐍈 \U0010ffff \ue000 \ufffd \ufffe",
    "lone \ud800 surrogates \udfff here",
    "▁ ▁▁ a▁b ▁a",
    "<s></s><unk> <s> text </s> <0x0A> <0xFF> <|begin_of_text|><|eot_id|> [INST] [/INST] <<SYS>>",
    "< s> </ s> <s </s s> <unk <0x0 0x0A> <|",
    "0 00 000 0000 12345678901234567890 3.14159 1,000,000 1e-5 0x1F 2024-05-17 ٣٤٥ ½ ² Ⅷ",
    "I'm you're WE'VE they'd don't it's 'quoted' O'Neil's 'S 'LL ’s",
    "def f(x: int) -> int:\n    if x <= 0:\n\treturn 0\n    return f(x - 1) + 1  # done\n\n\nprint(f(3))\n",
    "for(int i=0;i<n;++i){a[i]&=~(1u<<i);}//\t!=\r\n#include <stdio.h>\n/* ** */",
    '{"key": [1, 2.5, null, true], "näme": "\\u00e9\\n"}',
    "<html><body class='x'>&nbsp;&amp;</body></html> https://example.org/a?b=c&d=%20#e user@example.org",
    "$\\frac{a}{b}$ \\begin{align} x_{i}^{2} &= \\sum_{j=1}^{n} \\end{align}",
    "....... ------ ====== ______ ****** ###### !!!??? ,,,;;; ((())) [[]] {{}} ~~~ ``` '''",
    "CamelCaseIdentifiers snake_case_names SCREAMING_CASE kebab-case-words x1y2z3",
    "aAaAaA abababab abcabcabcabc xyxyxyxyx ababa anananas banananana mississippi",
    "supercalifragilisticexpialidociousantidisestablishmentarianismpneumonoultramicroscopic",
    "the quick brown fox jumps over the lazy dog. " * 300,
    "x" * 5000 + " " + "xy" * 3000 + " " + "\u00e9" * 2000 + "中" * 1500 + "😀" * 500,
    *(
        text
        for unit in (" ", "\n", "\t", "a", "e", "0", "-", "=", ".", "é", "中", "😀", " \n", "\r\n", "ab", " a")
        for text in _runs(unit)
    ),
)
"""Where tokenizers differ most often. The names of special tokens in them are left to the reference, as everywhere."""
