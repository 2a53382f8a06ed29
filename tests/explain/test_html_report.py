from __future__ import annotations

import base64
import errno
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import mmrh_retriever.report
from mmrh_retriever import HeadId, HeadSet, Page, Region, Reranker, ScoredPage, ScoredRegion
from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.errors import DataError, PageError
from mmrh_retriever.explain.heat_maps import save_heat_map
from mmrh_retriever.explain.html_report import html_report, report_on
from mmrh_retriever.ranking.question_attention import QuestionAttention
from tests import factories
from tests.explain.scored_pages import GRID, one_hot, scored_page

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

    @pytest.mark.parametrize("documents", [1, 5])
    def test_captions_name_documents_where_there_are_several(self, documents, tmp_path):
        pages = [
            scored_page(one_hot(i), doc_id=f"{i % documents}-{'long' * 20}.pdf", index=i, rank=i + 1) for i in range(5)
        ]
        text = html_report("What?", pages, tmp_path / "report.html").read_text(encoding="utf-8")
        captions = text[text.index('<ol class="thumbs">') : text.index("</ol>")]
        names = re.findall(r'<p class="document" title="(.*?)"><bdi>(.*?)</bdi></p>', captions)
        assert names == ([] if documents == 1 else [(page.page.doc_id, page.page.doc_id) for page in pages])
        in_one_line = re.findall(r'class="number">([^<]*)<', captions)  # what can't be wrapped
        assert len(in_one_line) == 5
        assert max(map(len, in_one_line)) < 8

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
        assert len(read.images) == 4  # two pages, small and large, without heat maps

    def test_an_empty_ranking_is_refused(self, tmp_path):
        with pytest.raises(PageError, match="ranking is empty"):
            html_report("Why?", [], tmp_path / "r.html")


class TestReportOn:
    QUESTION = "How did revenue change?"

    @pytest.fixture
    def encoded(self, reranker):
        return reranker.encode(
            Page(image=factories.page_image(seed), index=seed, regions=(Region((10, 10, 90, 60), "table"),))
            for seed in range(3)
        )

    @pytest.fixture
    def asked(self, monkeypatch):
        """The questions that the engine was asked, as token ids."""
        calls = []
        ask = Engine.ask

        def counted(engine, window, questions, **options):
            calls.extend(question.ids for question in questions)
            return ask(engine, window, questions, **options)

        monkeypatch.setattr(Engine, "ask", counted)
        return calls

    def test_encoded_pages_are_asked_once(self, encoded, asked, tmp_path):
        read = Reader(report_on(encoded, self.QUESTION, tmp_path / "r.html").read_text(encoding="utf-8"))
        assert len(asked) == 2, "the null question and the question, once each"
        assert asked[0] != asked[1]
        words = " ".join(read.words)
        assert "By token of the question" in words
        assert "Best boxes" in words
        assert "2 of 12 heads" in words

    def test_an_explanation_is_not_asked_again(self, encoded, asked, tmp_path):
        explanation = encoded.explain(self.QUESTION)
        one = report_on(explanation, self.QUESTION, tmp_path / "a.html", reranker=encoded.reranker)
        assert len(asked) == 2
        other = report_on(encoded, self.QUESTION, tmp_path / "b.html")
        read, again = (Reader(path.read_text(encoding="utf-8")) for path in (one, other))
        assert (read.words, len(read.images)) == (again.words, len(again.images))

    def test_it_shows_the_scores_of_a_plain_ranking(self, encoded, tmp_path):
        words = "".join(Reader(report_on(encoded, self.QUESTION, tmp_path / "r.html").read_text("utf-8")).words)
        ranked = encoded.rank(self.QUESTION)
        assert all(
            re.search(f"page {scored.page.number}.{{0,9}}{scored.score:.4f}".replace("-", "−"), words)
            for scored in ranked
        )

    def test_pages_of_text_alone_have_no_heat_maps(self, reranker, tmp_path):
        encoded = reranker.encode([Page(text="Revenue grew."), Page(text="Emissions fell.")])
        read = Reader(report_on(encoded, self.QUESTION, tmp_path / "r.html").read_text(encoding="utf-8"))
        assert read.images == []


def test_the_former_import_path_goes_on_working():
    assert mmrh_retriever.report.html_report is html_report
    assert mmrh_retriever.report.report_on is report_on


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    report, picture = tmp_path / "report.html", tmp_path / "map.png"
    report.write_text("an earlier report")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"report\.html: can't be written .*No space left"):
            html_report("What?", [scored_page(one_hot(3))], report)
        with pytest.raises(DataError, match=r"map\.png: can't be written .*No space left"):
            save_heat_map(scored_page(one_hot(3)), picture)
    assert report.read_text() == "an earlier report"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(DataError, match="the folder can't be made"):
        html_report("What?", [scored_page(one_hot(3))], report / "inside" / "report.html")
