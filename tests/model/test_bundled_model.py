"""Loading the bundled model: it says what it is for."""

from __future__ import annotations

import logging
import warnings

import pytest

from mmrh_retriever.model import loading


@pytest.mark.skipif(not (loading.BUNDLED_FOLDER / "config.json").is_file(), reason="the bundled model is not installed")
def test_the_bundled_model_says_once_what_it_is_for(caplog: pytest.LogCaptureFixture) -> None:
    loading._say_purpose.cache_clear()
    with caplog.at_level(logging.INFO, logger="mmrh_retriever"), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            loading.load_model(loading.model_path(None)[0])
    assert [(it.levelname, it.message) for it in caplog.records] == [("INFO", loading.BUNDLED_PURPOSE)]
