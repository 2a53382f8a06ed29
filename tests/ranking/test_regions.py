from __future__ import annotations

import asyncio

import numpy as np
import pytest
from PIL import Image

from mmrh_retriever import Page, PatchGrid, Region, Reranker, ScoredPage
from mmrh_retriever.errors import PageError, QuestionError, SettingsError
from mmrh_retriever.ranking.region_scores import AGGREGATES, region_fractions, region_scores
from mmrh_retriever.ranking.regions import MAX_CROP_RATIO, MIN_CROP_SIDE, Crops, RegionCrop, ranked_regions
from mmrh_retriever.settings import PromptOptions
from tests import factories

QUESTION = "How did revenue change?"
BOXES = ((0, 0, 48, 40), (48, 0, 96, 40), (0, 40, 96, 128))  # a partition of the 96 x 128 page


def page_of(seed, boxes=BOXES, **more):
    regions = [Region(box, kind) for box, kind in zip(boxes, ("title", "image", "text"), strict=False)]
    return Page(image=factories.page_image(seed), index=seed, regions=regions, **more)


def scored_page(page, scores, position=0, grid=None):
    grid = grid or PatchGrid.regular(2, 2)
    return ScoredPage(page, 0.0, 1, position, np.array(scores, dtype=np.float32), grid)


@pytest.fixture(scope="module")
def reranker():
    tiny = factories.tiny("qwen3_vl")
    return Reranker(tiny.model, (tiny.tokenizer, tiny.image_processor), heads="all")


@pytest.fixture(scope="module")
def pages():
    return [page_of(0), page_of(1, boxes=()), page_of(2)]


class TestRankedRegions:
    HALVES = ((0, 0, 48, 128), (48, 0, 96, 128))

    def test_best_first_over_all_pages(self):
        first, second = page_of(0, self.HALVES), page_of(1, self.HALVES)
        found = ranked_regions(
            [scored_page(second, [0.0, 0.5, 0.0, 0.1], position=1), scored_page(first, [0.3, 0.1, 0.1, 0.0])],
            aggregate="sum",
        )
        assert [(item.rank, item.page.index, item.box[0]) for item in found] == [
            (1, 1, 48.0), (2, 0, 0.0), (3, 0, 48.0), (4, 1, 0.0)
        ]  # fmt: skip
        assert [item.score for item in found] == pytest.approx([0.6, 0.4, 0.1, 0.0])
        assert found[0].region is second.regions[1]

    def test_equals_stand_in_the_order_of_pages_and_regions(self):
        pages = [page_of(number, self.HALVES) for number in range(2)]
        ranking = [scored_page(page, [0.1] * 4, position=place) for place, page in enumerate(pages)]
        found = ranked_regions(reversed(ranking), aggregate="mean")
        assert [(item.page.index, item.box[0]) for item in found] == [(0, 0.0), (0, 48.0), (1, 0.0), (1, 48.0)]

    def test_a_page_read_as_text_is_refused(self):
        page = Page(text="words", doc_id="a.pdf", index=3, size=(10, 10), regions=[Region((0, 0, 5, 5))])
        with pytest.raises(PageError, match=r"page 4 of a\.pdf.*as text.*method='crops'"):
            ranked_regions([ScoredPage(page, 0.0, 1, 0)], aggregate="sum")


class TestRankRegions:
    @pytest.mark.parametrize("aggregate", AGGREGATES)
    def test_scores_are_those_of_the_page_pass(self, reranker, pages, aggregate):
        found = reranker.rank_regions(QUESTION, pages, aggregate=aggregate)
        expected = {}
        for scored in reranker.rank(QUESTION, pages, with_tokens=True):
            values = region_scores(scored.token_scores, scored.grid, region_fractions(scored.page), aggregate)
            expected |= {id(region): value for region, value in zip(scored.page.regions, values, strict=True)}
        assert {id(item.region): item.score for item in found} == pytest.approx(expected, abs=1e-7)
        assert [item.rank for item in found] == list(range(1, 7))
        assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)

    def test_the_sums_of_a_partition_are_the_image_tokens_sum(self, reranker, pages):
        found = reranker.rank_regions(QUESTION, pages, aggregate="sum")
        for scored in reranker.rank(QUESTION, pages, with_tokens=True):
            if scored.page.regions:
                own = sum(item.score for item in found if item.page is scored.page)
                assert own == pytest.approx(float(scored.token_scores.sum()), abs=1e-6)

    def test_encoded_pages_give_the_same(self, reranker, pages):
        encoded = reranker.encode(pages)
        ours, theirs = encoded.rank_regions(QUESTION, top_n=3), reranker.rank_regions(QUESTION, pages, top_n=3)
        assert [item.region for item in ours] == [item.region for item in theirs]
        assert [item.score for item in ours] == pytest.approx([item.score for item in theirs], abs=1e-6)

    def test_many_questions_are_each_as_if_asked_alone(self, reranker, pages):
        both = reranker.rank_regions_many([QUESTION, "Who signed it?"], pages)
        alone = reranker.rank_regions("Who signed it?", pages)
        assert [item.region for item in both[1]] == [item.region for item in alone]
        assert [item.score for item in both[1]] == pytest.approx([item.score for item in alone], abs=1e-6)

    def test_crops_are_ranked_like_images(self, reranker, pages):
        found = reranker.rank_regions(QUESTION, pages, method="crops")
        images = [page.pixels().crop(region.box) for page in pages for region in page.regions]
        plain = reranker.rank(QUESTION, images)
        regions = [region for page in pages for region in page.regions]
        assert [item.region for item in found] == [regions[scored.position] for scored in plain]
        assert [item.score for item in found] == pytest.approx([scored.score for scored in plain], abs=1e-6)
        assert all(item.region in item.page.regions for item in found)

    @pytest.mark.parametrize("family", factories.VISION)
    def test_every_family_ranks_boxes(self, family):
        tiny = factories.tiny(family)
        reranker = Reranker(tiny.model, (tiny.tokenizer, tiny.image_processor), heads="all", check=False)
        (scored,) = reranker.rank(QUESTION, [page_of(0)], with_tokens=True)
        found = reranker.rank_regions(QUESTION, [scored.page], aggregate="sum")
        assert sum(item.score for item in found) == pytest.approx(float(scored.token_scores.sum()), abs=1e-6)
        assert len({item.score for item in found}) == len(BOXES)

    def test_in_a_thread(self, reranker, pages):
        async def both():
            encoded = await reranker.aencode(pages)
            return await reranker.arank_regions(QUESTION, pages, top_n=1), await encoded.arank_regions(
                QUESTION, top_n=1
            )

        (one,), (other,) = asyncio.run(both())
        assert one.region is other.region

    def test_pages_without_regions_are_refused_before_the_model_runs(self, reranker):
        with pytest.raises(PageError, match=r"None of the 1 pages has regions.*layout=True.*Page\(\.\.\., regions="):
            reranker.rank_regions("", [factories.page_image(0)])
        with pytest.raises(PageError, match="layout=True"):
            reranker.encode([factories.page_image(0)]).rank_regions(QUESTION)

    def test_what_else_is_refused(self, reranker, pages):
        with pytest.raises(SettingsError, match="top_n is a whole number of at least 1"):
            reranker.rank_regions(QUESTION, pages, top_n=0)
        with pytest.raises(ValueError, match=r"'boxes'.*page, crops"):
            reranker.rank_regions(QUESTION, pages, method="boxes")
        with pytest.raises(ValueError, match="'best'"):
            reranker.rank_regions(QUESTION, pages, aggregate="best")
        with pytest.raises(PageError, match="lies off the page"):
            reranker.rank_regions(QUESTION, [page_of(0, [(500, 500, 600, 600)])])
        with pytest.raises(QuestionError):
            reranker.rank_regions(" ", pages)

    def test_a_text_model_ranks_the_texts_of_boxes_as_crops(self):
        tiny = factories.tiny("qwen3")
        reranker = Reranker(tiny.model, tiny.tokenizer, heads="all", check=False)
        regions = [Region((0, 0, 5, 5), text="Revenue grew."), Region((5, 5, 9, 9), text="Staff.")]
        pages = [Page(text="Revenue grew. Staff.", size=(10, 10), regions=regions)]
        assert len(reranker.rank_regions(QUESTION, pages, method="crops")) == 2
        with pytest.raises(PageError, match="as text"):
            reranker.rank_regions(QUESTION, pages)


class TestCrops:
    def test_a_crop_is_the_part_of_the_page_in_its_pixels(self):
        image = factories.page_image(0)
        page = Page(image=image, size=(48.0, 64.0), doc_id="a.pdf", index=4, regions=[Region((3, 4, 43.2, 60))])
        (crop,) = Crops([page]).pages
        assert np.array_equal(np.asarray(crop.pixels()), np.asarray(image.crop((6, 8, 87, 120))))
        assert (crop.doc_id, crop.index, crop.size) == ("a.pdf", 4, pytest.approx((40.2, 56.0)))

    def test_a_page_is_drawn_once_for_its_crops(self):
        class Source:
            drawn = 0

            def load(self):
                self.drawn += 1
                return factories.page_image(0)

        source = Source()
        page = Page(image=source, size=(96, 128), regions=[Region(box) for box in BOXES])
        for crop in Crops([page]).pages:
            crop.pixels()
        assert source.drawn == 1

    @pytest.mark.parametrize(("box", "pixels"), [((0.5, 0.5, 0.5001, 0.5001), 1), ((0.0, 0.5, 1.0, 0.5001), 4000)])
    def test_slivers_get_white_around_them(self, box, pixels):
        page = Page(image=Image.new("RGB", (4000, 300), "black"))
        crop = RegionCrop(page, box).load()
        assert min(crop.size) >= MIN_CROP_SIDE
        assert max(crop.size) <= MAX_CROP_RATIO * min(crop.size)
        found = {colour: count for count, colour in crop.getcolors()}
        assert found == {(0, 0, 0): pixels, (255, 255, 255): crop.width * crop.height - pixels}


class TestQuestionAttention:
    def test_the_mean_over_the_tokens_is_the_pages_scores(self, reranker, pages):
        encoded = reranker.encode(pages)
        scored = encoded.rank(QUESTION, with_tokens=True)[1]
        found = encoded.question_attention(QUESTION, scored)
        assert found.scores.shape == (len(found.tokens), len(scored.grid))
        np.testing.assert_allclose(found.scores.mean(axis=0), scored.token_scores, atol=1e-6)
        assert "".join(found.tokens) == f"Question: {QUESTION}"
        assert found.page is scored.page

    def test_one_token_as_a_page(self, reranker, pages):
        encoded = reranker.encode(pages)
        found = encoded.question_attention(QUESTION, encoded.rank(QUESTION)[0])
        one = found.of_token(2)
        assert one.token_scores.tolist() == found.scores[2].tolist()
        assert one.score == pytest.approx(float(found.scores[2].sum()))

    def test_without_calibration_and_without_the_label(self, pages):
        tiny = factories.tiny("internvl")
        options = PromptOptions(count_question_label=False)
        reranker = Reranker(
            tiny.model,
            (tiny.tokenizer, tiny.image_processor),
            heads="all",
            calibrate=False,
            options=options,
            check=False,
        )
        encoded = reranker.encode(pages)
        (scored,) = encoded.rank(QUESTION, with_tokens=True, top_n=1)
        found = encoded.question_attention(QUESTION, scored)
        assert "".join(found.tokens) == f" {QUESTION}"
        assert (found.scores >= 0).all()
        np.testing.assert_allclose(found.scores.mean(axis=0), scored.token_scores, atol=1e-6)

    def test_a_page_of_another_document_is_refused(self, reranker, pages):
        (other,) = reranker.rank(QUESTION, [page_of(9)])
        with pytest.raises(PageError, match=r"page 10 is not one of these 3"):
            reranker.encode(pages).question_attention(QUESTION, other)

    def test_a_page_read_as_text_is_refused(self):
        tiny = factories.tiny("qwen3")
        reranker = Reranker(tiny.model, tiny.tokenizer, heads="all", check=False)
        encoded = reranker.encode([Page(text="Revenue grew.")])
        with pytest.raises(PageError, match="was read as text"):
            encoded.question_attention(QUESTION, encoded.rank(QUESTION)[0])
