"""Trained rerankers as baselines: scores of tiny random models against plain passes; what they read, and what not."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmrh_retriever import Page, Region
from mmrh_retriever.errors import PageError, SettingsError, UnsupportedModelError
from mmrh_retriever.evaluation.rankers import RankerSpec, build_rankers
from mmrh_retriever.evaluation.trained_rerankers import CHUNK_WORDS, TrainedRanker, as_words, load_trained
from tests.factories import page_image
from tests.tiny_rerankers import NO, YES, save_cross_encoder, save_image_cross_encoder, save_image_embedder, tokenizer

pytest.importorskip("sentence_transformers", reason="pip install 'mmrh-retriever[rerankers]'")

QUESTIONS = ["the revenue?", "water of the fleet", "fell?"]
LONG = " ".join(["the fleet"] * (CHUNK_WORDS // 2) + ["revenue grew"] * 30)
PAGES = [
    Page(text="the revenue grew", image=page_image(1)),
    Page(text=LONG, image=page_image(2)),
    Page(image=page_image(3)),
    Page(text="water fell", image=page_image(4)),
]


def ranker(kind: Any, folder: Path, **options: Any) -> Any:
    return build_rankers({"it": RankerSpec(kind, model=str(folder), device="cpu", **options)})["it"]


def test_a_cross_encoder_scores_a_page_as_its_best_chunk(tmp_path: Path) -> None:
    model, tokens = save_cross_encoder(tmp_path), tokenizer()

    def plain(question: str, text: str) -> float:
        with torch.inference_mode():
            return float(model(**tokens(question, text, return_tensors="pt")).logits[0, 0])

    found = ranker("cross-encoder", tmp_path).rank(QUESTIONS, PAGES)
    words = LONG.split()
    chunks = [" ".join(words[:CHUNK_WORDS]), " ".join(words[CHUNK_WORDS:])]
    for row, question in zip(found, QUESTIONS, strict=True):
        assert row[0] == pytest.approx(plain(question, "the revenue grew"), abs=1e-5)
        assert row[1] == pytest.approx(max(plain(question, chunk) for chunk in chunks), abs=1e-5)
        assert row[3] == pytest.approx(plain(question, "water fell"), abs=1e-5)
    assert found[:, 2].max() < found[:, [0, 1, 3]].min(), "without text a page is last"
    assert len(np.unique(np.round(found, 5))) > 6, "the tiny model tells pairs apart"
    assert ranker("cross-encoder", tmp_path).rank([], PAGES).shape == (0, 4)
    assert ranker("cross-encoder", tmp_path).rank(QUESTIONS, PAGES[2:3]).tolist() == [[-1.0]] * 3


def test_an_embedder_scores_by_its_own_similarity(tmp_path: Path) -> None:
    model, tokens = save_cross_encoder(tmp_path).bert, tokenizer()

    def embedded(text: str) -> torch.Tensor:
        with torch.inference_mode():
            return model(**tokens(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    found = ranker("sentence-transformer", tmp_path).rank(QUESTIONS, [PAGES[0], PAGES[3], PAGES[2]])
    for row, question in zip(found, QUESTIONS, strict=True):
        for column, text in enumerate(("the revenue grew", "water fell")):
            cosine = torch.cosine_similarity(embedded(question), embedded(text), dim=0)
            assert row[column] == pytest.approx(float(cosine), abs=1e-5)
    assert found[:, 2].max() < -1 + 1e-9


def test_boxes_by_their_texts(tmp_path: Path) -> None:
    save_cross_encoder(tmp_path)
    regions = [Region((0, 0, 50, 50), text="water fell"), Region((0, 50, 90, 100))]
    pages = [Page(image=page_image(1), regions=tuple(regions)), Page(image=page_image(2)), PAGES[0]]
    made = ranker("cross-encoder", tmp_path)
    found = made.rank_regions(QUESTIONS, pages)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found[:, 0], made.rank(QUESTIONS, PAGES[3:])[:, 0], atol=1e-5)
    assert (found[:, 1] < found[:, 0]).all()


def test_images_of_pages_and_boxes(tmp_path: Path) -> None:
    model = save_image_embedder(tmp_path)
    made = ranker("sentence-transformer", tmp_path, reads="image")
    found = made.rank(QUESTIONS, PAGES)
    processor, tokens = made.model[0].processor.image_processor, tokenizer()
    for row, question in zip(found, QUESTIONS, strict=True):
        for column, page in enumerate(PAGES):
            pixels = processor(page.pixels(), return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                both = model(**tokens(question, return_tensors="pt", return_token_type_ids=False), pixel_values=pixels)
            assert row[column] == pytest.approx(float((both.text_embeds * both.image_embeds).sum()), abs=1e-5)
    whole = Page(image=page_image(2), regions=(Region((0, 0, 96, 128)), Region((0, 0, 40, 60))))
    boxes = made.rank_regions(QUESTIONS, [whole])
    np.testing.assert_allclose(boxes[:, 0], found[:, 1], atol=1e-5)
    assert np.abs(boxes[:, 1] - boxes[:, 0]).max() > 1e-4
    with pytest.raises(PageError, match="page 1 has no image"):
        made.rank(QUESTIONS, [Page(text="words")])


def test_a_generative_cross_encoder_reads_images(tmp_path: Path) -> None:
    model, processor = save_image_cross_encoder(tmp_path)
    pages = PAGES[:2]
    found = ranker("cross-encoder", tmp_path, reads="image").rank(QUESTIONS, pages)
    for row, question in zip(found, QUESTIONS, strict=True):
        for column, page in enumerate(pages):
            text = f"query: {question}; document: <start_of_image>; yes or no?"
            given = processor(text=text, images=[page.pixels()], return_tensors="pt")
            with torch.inference_mode():
                logits = model(**given).logits[0, -1]
            assert row[column] == pytest.approx(float(logits[YES] - logits[NO]), abs=1e-4)


class Noted:
    """A cross-encoder that reads images, and keeps what it was given."""

    num_labels = 1

    def __init__(self) -> None:
        self.pairs: list[Any] = []

    def supports(self, modality: str) -> bool:
        return modality == "image"

    def predict(self, pairs: list[Any], **options: Any) -> Any:
        self.pairs += pairs
        return np.arange(len(pairs), dtype=np.float32)


def test_a_cross_encoder_is_given_questions_with_images() -> None:
    model = Noted()
    found = TrainedRanker("cross-encoder", model, "image").rank(["a?", "b?"], PAGES[:2])
    assert found.tolist() == [[0, 0], [1, 1]]
    assert [(question, type(part)) for question, part in model.pairs] == 2 * [("a?", Image.Image), ("b?", Image.Image)]
    assert model.pairs[0][1].tobytes() == PAGES[0].pixels().tobytes()


def test_text_is_never_taken_for_a_file_or_an_address(tmp_path: Path) -> None:
    modality = pytest.importorskip("sentence_transformers.base.modality")
    page_image(1).save(tmp_path / "a b.png")
    for text in (str(tmp_path / "a b.png"), "https://x.org/a.png", "data:image/png;base64,AAAA", "http://youtu.be/x"):
        assert modality.infer_modality(text) != "text"
        assert modality.infer_modality(as_words(text)) == "text"
        model = Noted()
        TrainedRanker("cross-encoder", model, "text").rank([text], [Page(text=text)])
        assert [modality.infer_modality(part) for part in model.pairs[0]] == ["text", "text"]
    assert as_words("Revenue grew by 3.5 percent.") == "Revenue grew by 3.5 percent."


def test_models_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_cross_encoder(tmp_path / "one")
    save_cross_encoder(tmp_path / "three", labels=3)
    with pytest.raises(UnsupportedModelError, match=r"reads text, no images.*--baseline-input text"):
        ranker("cross-encoder", tmp_path / "one", reads="image")
    with pytest.raises(UnsupportedModelError, match="gives 3 scores for a pair"):
        ranker("cross-encoder", tmp_path / "three")
    (tmp_path / "empty").mkdir()
    for nowhere in (tmp_path / "empty", tmp_path / "not there"):
        with pytest.raises(UnsupportedModelError, match="can't be loaded as a cross-encoder"):
            ranker("cross-encoder", nowhere)
    with pytest.raises(SettingsError, match="hub id or folder, as in cross-encoder:NAME"):
        build_rankers({"it": RankerSpec("cross-encoder")})
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.3.1")
    with pytest.raises(ImportError, match=r"6 or newer, found 5\.3\.1: pip install 'mmrh-retriever\[rerankers\]'"):
        load_trained("cross-encoder", str(tmp_path / "one"))


def test_code_of_a_model_is_not_run(tmp_path: Path) -> None:
    save_cross_encoder(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]))
    with pytest.raises(UnsupportedModelError, match="--baseline-own-code"):
        ranker("sentence-transformer", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for kind in ("cross-encoder", "sentence-transformer"):
        with pytest.raises(UnsupportedModelError, match=r"auto_map.*is not run.*--baseline-own-code"):
            ranker(kind, tmp_path)
    assert not ran.exists()


def test_only_who_asks_for_it_lets_a_model_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("sentence_transformers.CrossEncoder", lambda name, **more: given.append(more) or Noted())
    save_cross_encoder(tmp_path)
    ranker("cross-encoder", tmp_path, dtype="bfloat16")
    ranker("cross-encoder", tmp_path, own_code=True)
    assert [(more["trust_remote_code"], more["model_kwargs"]) for more in given] == [
        (False, {"dtype": "bfloat16"}), (True, {}),
    ]  # fmt: skip
