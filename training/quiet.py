"""Libraries talk too much while they start; what they say goes to the log files instead of the terminal."""

from __future__ import annotations

import logging
import os
import warnings

import torch


def quiet_libraries() -> None:
    """Keep notices of transformers, DeepSpeed and torch out of the terminal; errors still appear."""
    if not torch.cuda.is_available():
        # Said explicitly, DeepSpeed doesn't warn that it found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
