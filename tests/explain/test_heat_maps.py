from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmrh_retriever import HeadId, HeadSet, Page, PatchGrid, Region, Reranker, ScoredPage, ScoredRegion
from mmrh_retriever.errors import PageError
from mmrh_retriever.explain.heat_maps import draw_regions, full_colour, heat, heat_map, save_heat_map
from mmrh_retriever.explain.html_report import html_report
from mmrh_retriever.ranking.question_attention import QuestionAttention
from tests import factories

GRID = PatchGrid.regular(4, 4)
BOX_COLOUR = (16, 78, 139)


def white(size=(400, 400)):
    return Image.new("RGB", size, "white")


def scored_page(scores=None, image=None, rank=1, position=0, score=0.1, **page):
    values = np.zeros(16, dtype=np.float32) if scores is None else np.asarray(scores, dtype=np.float32)
    return ScoredPage(Page(image=image or white(), **page), score, rank, position, values, GRID)


def one_hot(place, value=0.01):
    scores = np.zeros(16, dtype=np.float32)
    scores[place] = value
    return scores


class TestHeat:
    def test_the_array_is_the_tokens_in_place(self):
        found = heat(scored_page(one_hot(6)))
        assert found.shape == (4, 4)
        assert found[1, 2] == pytest.approx(0.01)
        assert heat(scored_page(one_hot(6)), shape=(2, 2)).tolist() == [[0, pytest.approx(0.01)], [0, 0]]

    def test_a_page_without_token_scores_says_how_to_get_them(self):
        plain = ScoredPage(Page(image=white(), doc_id="a.pdf", index=1), 0.1, 1, 0)
        for asked in (heat, heat_map):
            with pytest.raises(PageError, match=r"page 2 of a\.pdf.*with_tokens=True") as caught:
                asked(plain)
            assert caught.value.page == 1


class TestHeatMap:
    def test_colour_stands_where_the_attention_went_and_only_there(self):
        drawn = heat_map(scored_page(one_hot(6)))
        assert drawn.mode == "RGB"
        assert drawn.size == (400, 400)
        red, green, blue = drawn.getpixel((250, 150))  # the middle of the token
        assert red > 150 > max(green, blue)
        assert drawn.getpixel((50, 350)) == (255, 255, 255)

    def test_negative_scores_have_no_colour(self):
        assert heat_map(scored_page(-one_hot(6))).getcolors() == [(160_000, (255, 255, 255))]
        assert heat_map(scored_page()).getcolors() == [(160_000, (255, 255, 255))]

    def test_the_page_stays_in_its_greys(self):
        image = Image.new("RGB", (400, 400), (200, 30, 30))
        red, green, blue = heat_map(scored_page(image=image)).getpixel((5, 5))
        assert red == green == blue

    def test_under_one_scale_a_weaker_page_is_paler(self):
        weak, strong = scored_page(one_hot(5, 0.002)), scored_page(one_hot(5, 0.01))
        scale = full_colour([weak, strong])
        assert scale == pytest.approx(full_colour([strong]))
        pale, full = (heat_map(page, scale=scale).getpixel((150, 150)) for page in (weak, strong))
        assert pale[2] > full[2]
        assert heat_map(weak).getpixel((150, 150)) == full

    def test_the_scale_does_not_depend_on_the_number_of_tokens(self):
        coarse = ScoredPage(Page(image=white()), 0.1, 1, 0, np.full(4, 0.04, np.float32), PatchGrid.regular(2, 2))
        assert full_colour([coarse]) == pytest.approx(0.16)
        assert full_colour([scored_page(np.full(16, 0.01))]) == pytest.approx(0.16)
        assert full_colour([ScoredPage(Page(text="words"), 0.1, 1, 0)]) == 0.0

    def test_sizes(self):
        assert heat_map(scored_page(image=white((600, 300))), max_side=200).size == (200, 100)
        assert heat_map(scored_page(image=white((32, 16)))).size == (320, 160)

    def test_no_opacity_leaves_the_page(self):
        assert heat_map(scored_page(one_hot(3)), opacity=0.0).getcolors() == [(160_000, (255, 255, 255))]
        with pytest.raises(ValueError, match="0 to 1"):
            heat_map(scored_page(), opacity=2.0)

    def test_only_the_pages_own_boxes_are_drawn(self):
        scored, other = scored_page(), scored_page()
        region = Region((100, 100, 300, 200))
        plain = heat_map(scored)
        assert heat_map(scored, regions=[ScoredRegion(other.page, region, 0.1, 1)]) == plain
        assert heat_map(scored, regions=[ScoredRegion(scored.page, region, 0.1, 1)]) != plain

    def test_save_writes_by_ending_and_makes_folders(self, tmp_path):
        for name in ("a.png", "b.jpg", "c.webp"):
            path = save_heat_map(scored_page(one_hot(2)), tmp_path / "maps" / name, max_side=200)
            assert path == tmp_path / "maps" / name
            with Image.open(path) as image:
                assert image.size == (200, 200)

    def test_save_refuses_other_endings(self, tmp_path):
        with pytest.raises(PageError, match=r"'map\.txt'.*\.png"):
            save_heat_map(scored_page(), tmp_path / "map.txt")
        assert not list(tmp_path.iterdir())


class TestDrawRegions:
    def test_the_line_runs_around_the_box_in_page_units(self):
        page = Page(image=white(), size=(200.0, 100.0))
        drawn = draw_regions(white((1000, 500)), [ScoredRegion(page, Region((50, 25, 150, 75)), 0.5, 1)])
        assert drawn.getpixel((500, 123)) == BOX_COLOUR  # above the upper edge at 125
        assert drawn.getpixel((500, 127)) == (255, 255, 255)
        assert drawn.getpixel((500, 250)) == (255, 255, 255)

    @pytest.mark.parametrize("box", [(0, 0, 200, 100), (-20, -20, 30, 30), (190, 95, 260, 160)])
    def test_labels_stay_on_the_page(self, box):
        page = Page(image=white(), size=(200.0, 100.0))
        drawn = draw_regions(white((1000, 500)), [ScoredRegion(page, Region(box), 0.5, 123)])
        assert drawn.size == (1000, 500)
        blue = sum(count for count, colour in drawn.getcolors(1 << 20) if colour == BOX_COLOUR)
        assert blue > 600  # the label is there

    def test_a_page_without_a_size_is_refused(self):
        page = Page(text="words")
        with pytest.raises(PageError, match="no size"):
            draw_regions(white(), [ScoredRegion(page, Region((0, 0, 1, 1)), 0.5, 1)])


VOID = {"meta", "img", "br", "link", "input", "hr", "rect"}


class Reader(HTMLParser):
    """Reads a report: its text, tags in balance, and every address in it."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.images = [], [], [], []
        self.ids, self.links = set(), set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            assert found["id"] not in self.ids
            self.ids.add(found["id"])
        if tag == "img":
            self.images.append(found)
        if "href" in found:
            self.links.add(found["href"])

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


EVIL = "<script>alert(1)</script> & \"quotes\" 'too' <img src=http://x/y>"


@pytest.fixture(scope="module")
def reranker():
    tiny = factories.tiny("qwen3_vl")
    heads = HeadSet((HeadId(1, 2), HeadId(0, 3)), tasks=("text",), context_length=8192, source=EVIL)
    return Reranker(tiny.model, (tiny.tokenizer, tiny.image_processor), heads=heads, check=False)


@pytest.fixture(scope="module")
def ranked():
    return [
        scored_page(one_hot(6), doc_id="a.pdf", index=3, rank=1, position=3, score=0.02),
        scored_page(one_hot(1, 0.004), doc_id="a.pdf", index=0, rank=2, position=0, score=-0.001),
        ScoredPage(Page(text=EVIL, doc_id=EVIL, index=7), -0.5, 3, 7),
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory, ranked, reranker):
    page = ranked[0].page
    regions = [
        ScoredRegion(page, Region((10, 10, 200, 90), "table", text=EVIL), 0.0123, 1),
        ScoredRegion(page, Region((10, 100, 200, 190), EVIL, text="word " * 100), 0.004, 2),
    ]
    attention = QuestionAttention(
        ranked[0], ("How", " many", " <b>"), np.stack([one_hot(6), one_hot(1, 0.001), -one_hot(2)]), GRID
    )
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    written = html_report(
        EVIL, ranked, path, regions=regions, attention=[attention], reranker=reranker, settings={EVIL: EVIL}, pictures=2
    )
    assert written == path
    return path.read_text(encoding="utf-8")


class TestReport:
    def test_it_is_balanced_and_its_links_lead_somewhere(self, report):
        read = Reader(report)
        assert read.links
        assert all(link.startswith("#") and link[1:] in read.ids for link in read.links)

    def test_nothing_is_asked_of_the_network(self, report):
        read = Reader(report)
        assert not {"script", "link", "iframe", "object", "form"} & set(read.tags)
        assert all(image["src"].startswith("data:image/jpeg;base64,") for image in read.images)
        assert all(link.startswith("#") for link in read.links)
        assert not re.search(r"url\(|@import|srcset|<svg[^>]*http", report)
        assert "default-src 'none'" in report

    def test_all_text_is_escaped(self, report):
        assert "<script" not in report
        assert "<img src=http" not in report
        words = "".join(Reader(report).words)
        # title, heading, two settings, head source, box text, box kind, page names
        assert words.count("alert(1)") >= 8

    def test_scores_ranks_heads_and_settings_are_there(self, report):
        words = "".join(Reader(report).words)
        for expected in (
            "0.020",
            "−0.001",
            "−0.500",
            "0.0123",
            "0.0040",
            "page 4 of a.pdf",
            "1-2, 0-3",
            "2 of 12 heads",
            "qwen",
            "8,192",
        ):
            assert expected.lower() in words.lower(), expected
        assert "word word…" in words

    def test_every_picture_says_what_it_shows(self, report):
        images = Reader(report).images
        assert all("alt" in image for image in images)
        described = [image["alt"] for image in images if image["alt"]]
        assert "Heat map over page 4 of a.pdf, with its best boxes numbered" in described
        assert len(described) == 2 + 3  # two pages, three tokens
        for image in images:
            Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).verify()

    def test_a_ranking_alone_is_enough(self, tmp_path, ranked):
        plain = [ScoredPage(item.page, item.score, item.rank, item.position) for item in ranked]
        read = Reader(html_report("Why?", plain, tmp_path / "r.html").read_text(encoding="utf-8"))
        assert "svg" not in read.tags
        assert len(read.images) == 4  # two pages, small and large, without heat

    def test_an_empty_ranking_is_refused(self, tmp_path):
        with pytest.raises(PageError, match="ranking is empty"):
            html_report("Why?", [], tmp_path / "r.html")
