"""How much each token of a question counts: frequent ones, as of function words, less than rare ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrh_retriever.errors import SettingsError
from mmrh_retriever.files import FileModel, is_file, read_json

FREQUENCIES_FILE = "mmrh_token_frequencies.json"
"""The file beside a model's weights that says how often each of its tokens stands in running text."""
SMOOTHING = 1e-3
"""The share of all tokens at which a token counts half: Arora et al. 2017 use 1e-3 to 1e-4."""


class TokenFrequencies(FileModel):
    """A file of token frequencies: ``counts[id]`` is how often a token was met; ``source`` says in what text."""

    format: Literal["mmrh-token-frequencies"] = "mmrh-token-frequencies"
    version: Literal[1] = 1
    source: str
    counts: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

    def weights(self) -> Tensor:
        """``(tokens,)`` float32 in (0, 1]: ``a / (a + p)`` for a token that is the share ``p`` of all, 1 where unmet.

        Smooth inverse frequency of Arora et al. 2017 ("A simple but tough-to-beat baseline for sentence embeddings"),
        with ``a`` = :data:`SMOOTHING`.
        """
        counts = torch.tensor(self.counts, dtype=torch.float64)
        return (SMOOTHING / (SMOOTHING + counts / counts.sum().clamp(min=1))).float()


def frequency_weights(model: str) -> Tensor:
    """The weights of a model's tokens, from the file in its folder; see :meth:`TokenFrequencies.weights`.

    Raises:
        SettingsError: the model is no folder with such a file.
        DataError: the file can't be read.
    """
    path = Path(model) / FREQUENCIES_FILE
    if not is_file(path):
        raise SettingsError(
            f"question_weights='frequency' needs {FREQUENCIES_FILE} in the model's folder, and {model} has none. "
            "Expected a local folder with that file, as the bundled model has it: use question_weights='uniform'."
        )
    return read_json(path, TokenFrequencies, what="file of token frequencies").weights()
