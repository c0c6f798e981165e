"""A tiny model with clear preferences, its tokenizer, and the scorer around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evals.encoder import Codec, load_codec
from evals.scoring.scorer import Scorer

SHARED = Path(__file__).parents[5] / "shared" / "data"
TEXTS = [
    "Question: How many apples does Janet have? Answer: 16 - 3 = 13 apples. #### 13",
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "A man is sitting on a roof. He starts pulling up roofing on a roof. She is using wrap to wrap a pair of skis.",
    "Sarah was a much better surgeon than Maria so Sarah always got the easier cases.",
]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a random Llama of two layers, and a byte-level BPE tokenizer that adds <s>."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(model_dir: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def codec(model_dir: Path) -> Codec:
    return load_codec(model_dir)


@pytest.fixture
def make_scorer(model: Any) -> Callable[..., Scorer]:
    """A scorer on the tiny model; keyword arguments replace its settings."""

    def make(**settings: Any) -> Scorer:
        defaults = {"model": model, "device": "cpu", "pad_id": 0, "max_length": 1024}
        return Scorer(**(defaults | settings))

    return make


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Two WinoGrande questions and three of ARC, in files as the harness's hub data has them."""
    folder = tmp_path / "data"
    (folder / "winogrande").mkdir(parents=True)
    winogrande = [
        {"sentence": "Sarah was better than Maria so _ won.", "option1": "Sarah", "option2": "Maria", "answer": "1"},
        {"sentence": "Sarah was better than Maria so _ lost.", "option1": "Sarah", "option2": "Maria", "answer": "2"},
    ]
    (folder / "winogrande" / "validation.jsonl").write_text("\n".join(map(json.dumps, winogrande)))
    arc = [
        {
            "id": f"q{i}",
            "question": f"What is {i} apples and {i} apples?",
            "choices": {"text": [str(i), str(2 * i), "a roof"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        }
        for i in range(3)
    ]
    (folder / "arc_challenge_test.jsonl").write_text("\n".join(map(json.dumps, arc)))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets."""
    if not (SHARED / "hellaswag_validation.jsonl.gz").is_file():
        pytest.skip("the shared data folder is not beside the repository")
    return SHARED
