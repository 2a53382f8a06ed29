"""Write the reader as a stock Hugging Face folder."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from tools.reader.model import image_processor

logger = logging.getLogger(__name__)


def export(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> int:
    """Save everything that `from_pretrained` needs; returns the folder's size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.mmrh_hybrid = True  # measured: docs/evaluation.md
    model.config.mmrh_images_only = True  # it never learnt to look at text
    model.config.mmrh_independent = True  # pages are encoded one by one, as in stage 2
    model.config.mmrh_question_weights = "frequency"  # measured: docs/evaluation.md
    model.config.mmrh_token_budget = 98_304  # so that some 50 full pages share one softmax
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    logger.info("exported %.1f MB to %s", size / 1e6, folder)
    return size
