"""What the adapters to other frameworks share: settings that can be written down, and the ranking of documents."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymupdf
import pytest
import torch
from PIL import Image

from mmrh_retriever import HeadSet, PageError, QuestionError, Reranker, SettingsError, release_shared_models
from mmrh_retriever.adapters import AdapterSettings, PageClues, RankedItem, check_top_n
from mmrh_retriever.adapters.notices import warn_once
from mmrh_retriever.model.loading import BUNDLED_FOLDER
from mmrh_retriever.ranking.calibration import Calibration, Logistic
from tests import factories
from tests.ranking_stub import StubReranker, real, stub, tiny

QUESTION = "How did revenue change?"


def text(score: float) -> PageClues:
    return PageClues(text=f"score={score}")


def rank(settings: AdapterSettings, items: list[PageClues], **options: Any) -> list[RankedItem]:
    return settings.rank_items(QUESTION, items, lambda clues: clues, **options)


@pytest.fixture
def reranker() -> StubReranker:
    return stub()


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    document = pymupdf.open()
    for number in range(3):
        document.new_page(width=200, height=300).insert_text((20, 40), f"sheet {number} of the report")
    document.save(tmp_path / "three.pdf")
    return tmp_path / "three.pdf"


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    release_shared_models()
    for part in (tiny().model, tiny().tokenizer, tiny().image_processor):
        part.save_pretrained(tmp_path)
    yield tmp_path
    release_shared_models()


@pytest.fixture
def bundled(reranker: StubReranker, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubReranker]:
    """A reranker whose model calls itself the bundled one."""
    monkeypatch.setattr(reranker.backbone.config, "_name_or_path", str(BUNDLED_FOLDER))
    warn_once.cache_clear()
    yield reranker
    warn_once.cache_clear()


# What the bundled model is for


def test_the_bundled_model_is_warned_of_once_where_pages_have_text(bundled: StubReranker, pdf: Path) -> None:
    settings = AdapterSettings(reranker=bundled)
    items = [PageClues(file_path=pdf, index=index) for index in range(3)]
    with pytest.warns(UserWarning, match="text layer") as caught:
        rank(settings, items)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rank(settings, items)


def test_no_warning_for_scans_or_other_models(bundled: StubReranker, pdf: Path) -> None:
    scans = [PageClues(image=factories.page_image(seed)) for seed in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rank(AdapterSettings(reranker=bundled), [*scans, PageClues(file_path=pdf, index=0)])
        bundled.backbone.config._name_or_path = "another"
        rank(AdapterSettings(reranker=bundled), [PageClues(file_path=pdf, index=0)])


# Settings


def test_settings_are_checked() -> None:
    for wrong in (
        {"on_error": "ignore"}, {"page_base": 2}, {"max_bytes": 0}, {"max_image_pixels": 10**9}, {"max_pixels": 0},
        {"regions_per_page": 0}, {"unheard_of": 1}, {"token_budget": 0}, {"url_timeout": -1},
    ):  # fmt: skip
        with pytest.raises(SettingsError):
            AdapterSettings(**wrong)


def test_settings_take_what_users_have() -> None:
    settings = AdapterSettings(
        model=Path("folder"),
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        heads=["1-2", "0-3"],
        allowed_root=Path(),
    )
    assert (settings.model, settings.dtype, settings.device) == ("folder", "bfloat16", "cpu")
    assert settings.heads == HeadSet.parse(["1-2", "0-3"])
    assert AdapterSettings(heads=Path("heads.json")).heads == "heads.json"


def test_settings_become_plain_data_and_come_back() -> None:
    settings = AdapterSettings(heads=HeadSet.parse(["1-2", "0-3"]), score_threshold=0.5, model_kwargs={"a": 1})
    plain = settings.model_dump(mode="json")
    assert plain["heads"] == ["1-2", "0-3"]
    assert AdapterSettings(**plain) == settings


def test_model_is_loaded_at_first_use_and_shared(saved: Path) -> None:
    one, two = (AdapterSettings(model=saved, heads="all", dtype=kind) for kind in ("float32", torch.float32))
    assert one.model_label == saved.name
    assert one._held.reranker is None
    assert one.reranker.backbone.model is two.reranker.backbone.model
    assert one.reranker is one.reranker
    loaded = one.reranker
    one.calibrate = False
    assert one.reranker is not loaded
    assert one.reranker.backbone.model is loaded.backbone.model
    unpickled = pickle.loads(pickle.dumps(one))  # noqa: S301
    assert unpickled.reranker.backbone.model is loaded.backbone.model


def test_pages_that_stand_alone_are_kept_for_the_next_question(saved: Path) -> None:
    items = [PageClues(image=factories.page_image(seed), index=seed) for seed in range(3)]
    settings = AdapterSettings(model=str(saved), heads="all", independent=True)
    without = AdapterSettings(model=str(saved), heads="all", independent=True, page_memory=0)
    first = rank(settings, items)
    store = settings.reranker.store
    assert store is not None
    assert (store.hits, len(store)) == (0, 3)
    assert rank(settings, items[::-1])[0].score == pytest.approx(first[0].score, abs=1e-6)
    assert (store.hits, len(store)) == (3, 3)
    assert without.reranker.store is None
    together = AdapterSettings(model=str(saved), heads="all")
    assert not together.reranker.independent
    assert together.reranker.store is None


def test_a_store_is_given_to_a_loaded_reranker_too(reranker: StubReranker, tmp_path: Path) -> None:
    settings = AdapterSettings(reranker=reranker, store=tmp_path / "encoded", store_disk=10, page_memory=20)
    store = settings.reranker.store
    assert store is not None
    assert (store.folder, store.disk, store.memory) == (tmp_path / "encoded", 10, 20)
    assert settings.reranker is settings.reranker
    assert reranker.store is None


def test_a_final_round_is_a_setting(saved: Path) -> None:
    assert AdapterSettings(model=str(saved), heads="all", final_round=4).reranker.settings.final_round == 4
    with pytest.raises(ValueError, match="2 or more, or 0 for none; got 1"):
        AdapterSettings(final_round=1)


def test_the_old_name_of_the_final_round_warns_and_works() -> None:
    with pytest.warns(DeprecationWarning, match="final_round"):
        settings = AdapterSettings(final_heat=4)
    assert settings.final_round == 4
    with pytest.warns(DeprecationWarning, match="final_round"):
        assert settings.final_heat == 4


def test_equal_settings_that_are_written_otherwise_load_nothing_anew(saved: Path) -> None:
    settings = AdapterSettings(model=saved, heads=["0-1"], device="cpu")
    loaded = settings.reranker
    settings.model, settings.device = str(saved), torch.device("cpu")
    assert settings.reranker is loaded
    settings.token_budget = 0
    with pytest.raises(SettingsError, match="token_budget"):
        _ = settings.reranker


def test_a_given_reranker_is_used_and_copies_share_it(reranker: StubReranker) -> None:
    settings = AdapterSettings(reranker=reranker)
    assert settings.reranker is reranker
    for other in (copy.copy(settings), copy.deepcopy(settings), settings.model_copy(update={"on_error": "drop"})):
        assert other.reranker is reranker
    assert settings.heads == reranker.heads
    assert AdapterSettings(reranker=real(calibrate=False, final_round=4), final_round=2).final_round == 4
    assert settings.model_label == "Qwen3VLForConditionalGeneration"
    assert AdapterSettings().model_label == "bundled"


def test_a_given_reranker_without_a_name_is_not_pickled(reranker: StubReranker) -> None:
    with pytest.raises(ValueError, match="give its folder as model="):
        pickle.dumps(AdapterSettings(reranker=reranker))


# Ranking


def test_best_first_and_equals_in_their_order(reranker: StubReranker) -> None:
    ranked = rank(AdapterSettings(reranker=reranker), [text(0.25), text(0.5), text(0.25), text(0.75), text(0.25)])
    assert [(item.position, item.score) for item in ranked] == [
        (3, 0.75), (1, 0.5), (0, 0.25), (2, 0.25), (4, 0.25),
    ]  # fmt: skip
    assert all(type(item.score) is float for item in ranked)


def test_top_n_and_threshold(reranker: StubReranker) -> None:
    settings = AdapterSettings(reranker=reranker, score_threshold=0.3)
    items = [text(0.25), text(0.5), text(0.3), text(-0.5)]
    assert [item.position for item in rank(settings, items)] == [1, 2]
    assert [item.position for item in rank(settings, items, top_n=1)] == [1]
    assert [item.position for item in rank(settings, items, score_threshold=-1.0)] == [1, 2, 0, 3]
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(SettingsError, match="top_n"):
            rank(settings, items, top_n=wrong)
        with pytest.raises(ValueError, match="k is a whole number"):
            check_top_n(wrong, "k")


def test_empty_questions_are_refused_before_anything_is_read(reranker: StubReranker) -> None:
    for question in ("", "  ", None):
        with pytest.raises(QuestionError, match="empty"):
            AdapterSettings(reranker=reranker).rank_items(question, [text(1)], lambda clues: clues)  # type: ignore[arg-type]
    assert reranker.calls == []


def test_documents_of_one_page_are_scored_once(reranker: StubReranker, pdf: Path) -> None:
    items = [
        PageClues(file_path=pdf, index=index, text=f"chunk {chunk}") for chunk, index in enumerate([0, 1, 0, 1, 2])
    ]
    ranked = rank(AdapterSettings(reranker=reranker), items)
    assert len(reranker.calls[0]) == 3
    scores = {item.position: item.score for item in ranked}
    assert len(scores) == 5
    assert scores[0] == scores[2]
    assert scores[1] == scores[3]


BROKEN = PageClues(image=b"no picture", doc_id="broken")


def damaged() -> PageClues:
    """A picture with a whole header and pixels that are cut off: found only when it is decoded."""
    stream = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(stream, "PNG")
    return PageClues(image=stream.getvalue()[:4000], doc_id="damaged")


def test_on_error_raise(reranker: StubReranker) -> None:
    settings = AdapterSettings(reranker=reranker)
    with pytest.raises(PageError, match="broken is not an image"):
        rank(settings, [text(1), BROKEN])
    with pytest.raises(PageError, match="damaged"):
        rank(AdapterSettings(reranker=real()), [damaged()])


@pytest.mark.parametrize("bad", [BROKEN, PageClues(image_path="missing.png"), PageClues(text=" "), damaged()])
def test_on_error_last_and_drop(bad: PageClues, reranker: StubReranker) -> None:
    items = [bad, text(0.25), bad, text(0.5)]
    last = rank(AdapterSettings(reranker=reranker, on_error="last", score_threshold=0.3), items)
    assert [(item.position, item.score) for item in last] == [(3, 0.5), (0, None), (2, None)]
    assert isinstance(last[1].error, PageError)
    assert [item.position for item in rank(AdapterSettings(reranker=reranker, on_error="last"), items, top_n=3)] == [
        3, 1, 0,
    ]  # fmt: skip
    assert [item.position for item in rank(AdapterSettings(reranker=reranker, on_error="drop"), items)] == [3, 1]


def test_nothing_readable(reranker: StubReranker) -> None:
    assert rank(AdapterSettings(reranker=reranker, on_error="drop"), [BROKEN, damaged()]) == []
    assert len(rank(AdapterSettings(reranker=reranker, on_error="last"), [BROKEN, damaged()])) == 2


def test_pages_too_long_for_the_model_are_unreadable() -> None:
    settings = AdapterSettings(reranker=real(token_budget=700), on_error="last")
    items = [PageClues(text="word " * 2000), PageClues(text="short"), PageClues(text="words " * 3000)]
    ranked = rank(settings, items)
    assert [item.position for item in ranked] == [1, 0, 2]
    assert "max_pixels" in str(ranked[1].error)


def test_a_question_too_long_is_raised_in_any_case() -> None:
    settings = AdapterSettings(reranker=real(token_budget=700), on_error="drop")
    with pytest.raises(Exception, match="token"):
        settings.rank_items("word " * 3000, [PageClues(text="short")], lambda clues: clues)


def test_scores_with_a_page_dropped_are_those_of_the_others_alone() -> None:
    good = [PageClues(image=factories.page_image(seed)) for seed in range(3)]
    with_bad = rank(AdapterSettings(reranker=real(), on_error="drop"), [good[0], damaged(), good[1], BROKEN, good[2]])
    alone = rank(AdapterSettings(reranker=real()), good)
    assert [item.score for item in with_bad] == [item.score for item in alone]


def test_regions_on_request(reranker: StubReranker, pdf: Path) -> None:
    items = [PageClues(file_path=pdf, index=0), text(0.1), PageClues(file_path=pdf, index=0), BROKEN]
    plain = rank(AdapterSettings(reranker=reranker, on_error="last"), items)
    assert all(item.regions == () for item in plain)
    ranked = rank(AdapterSettings(reranker=reranker, on_error="last", with_regions=True, regions_per_page=1), items)
    by_position = {item.position: item for item in ranked}
    (record,) = by_position[0].region_records()
    assert record["page_size"] == [200.0, 300.0]
    assert "sheet 0" in record["text"]
    assert record == by_position[2].region_records()[0]
    assert (by_position[1].regions, by_position[3].regions) == ((), ())


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (300, 40)])
def test_pages_without_layout_get_a_grid(size: tuple[int, int]) -> None:
    items = [PageClues(image=factories.page_image(0, size)), PageClues(text="words alone")]
    ranked = rank(AdapterSettings(reranker=real(), with_regions=True, regions_per_page=99), items)
    by_position = {item.position: item for item in ranked}
    assert by_position[1].regions == ()
    records = by_position[0].region_records()
    assert 16 <= len(records) <= 40
    assert {record["kind"] for record in records} == {"cell"}
    assert [record["score"] for record in records] == sorted((record["score"] for record in records), reverse=True)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (record["box"] for record in records)]
    assert sum(areas) == pytest.approx(size[0] * size[1], rel=1e-3)


def test_eight_threads_on_one_model_give_the_scores_of_one() -> None:
    settings = AdapterSettings(reranker=real())
    items = [*(PageClues(image=factories.page_image(seed)) for seed in range(3)), PageClues(text="Revenue grew.")]

    def ask(number: int) -> list[RankedItem]:
        return settings.rank_items(f"{QUESTION} {number}", items, lambda clues: clues)

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone


def test_trust_settings_reach_the_pages(tmp_path: Path, reranker: StubReranker) -> None:
    factories.page_image(0).save(tmp_path / "a.png")
    inside = AdapterSettings(reranker=reranker, allowed_root=tmp_path)
    assert rank(inside, [PageClues(image_path=tmp_path / "a.png")])
    (tmp_path / "in").mkdir()
    for settings, message in (
        ({"allowed_root": tmp_path / "in"}, "outside"),
        ({"max_bytes": 10}, "max_bytes"),
        ({"max_image_pixels": 100}, "max_pixels"),
    ):
        with pytest.raises(PageError, match=message):
            rank(AdapterSettings(reranker=reranker, **settings), [PageClues(image_path=tmp_path / "a.png")])
    with pytest.raises(PageError, match="allow_urls"):
        rank(inside, [PageClues(image_url="https://example.org/a.png")])
    with pytest.raises(PageError, match="not a public address"):
        rank(AdapterSettings(reranker=reranker, allow_urls=True), [PageClues(image_url="http://127.0.0.1/a.png")])


def test_the_stub_is_a_reranker() -> None:
    assert isinstance(stub(), Reranker)


# Probabilities


def test_improbable_documents_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    ranked = [
        RankedItem(0, 0.1, probability=0.3),
        RankedItem(1, 0.9, probability=0.6),
        RankedItem(2, 0.5, probability=0.5),
    ]
    settings = AdapterSettings(reranker=stub(), min_probability=0.5, on_error="last")
    chosen = settings.choose(ranked, {3: PageError("damaged")}, top_n=None, score_threshold=None)
    assert [item.position for item in chosen] == [1, 2, 3]
    assert not caplog.records
    settings.min_probability = 0.7
    assert settings.choose(ranked, {}, top_n=None, score_threshold=None) == []
    assert "None of 3 pages is evidence with a probability of 0.7 or more" in caplog.text
    with pytest.raises(SettingsError, match="min_probability"):
        AdapterSettings(min_probability=1.5)


def test_a_least_probability_takes_the_rerankers_calibration() -> None:
    reranker = real(hybrid=False)
    weights = Logistic(intercept=0.0, weights={"attention": 0.0, "attention_margin": 1000.0})
    names = [str(head) for head in reranker.heads]
    calibration = Calibration(
        model=reranker.backbone.name, heads=names, settings=reranker.calibrated_settings, source="", attention=weights
    )
    items = [PageClues(text="water and salt"), PageClues(text="revenue changed")]
    with pytest.raises(SettingsError, match="needs a calibration: no mmrh_calibration.json stands beside the model"):
        rank(AdapterSettings(reranker=reranker, min_probability=0.5), items)
    calibrated = AdapterSettings(reranker=reranker.with_calibration(calibration), min_probability=0.5)
    (best,) = rank(calibrated, items)  # the one above the other
    assert best.position == rank(AdapterSettings(reranker=reranker), items)[0].position
    assert best.probability is not None
    assert best.probability > 0.5
