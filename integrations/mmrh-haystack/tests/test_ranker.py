"""Documents of every kind, and what comes back."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from haystack import Document
from haystack.dataclasses import ByteStream
from mmrh_retriever import PageError, QuestionError, SettingsError, read_pdf
from tests.ranking_stub import StubReranker, png, real

from haystack_integrations.components.rankers.mmrh import MMRHRanker
from tests import factories

QUESTION = "How did revenue change?"
REPORT = Path(__file__).parents[3] / "examples" / "sample_report.pdf"


def doc(scores: float, /, **fields: Any) -> Document:
    return Document(content=f"score={scores}", **fields)


def ranked(ranker: MMRHRanker, documents: list[Document], **more: Any) -> list[Document]:
    return ranker.run(query=QUESTION, documents=documents, **more)["documents"]


def ids(found: list[Document]) -> list[str]:
    return [it.id for it in found]


# Pictures


def test_every_image_route_leads_to_the_same_score(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    packed = base64.b64encode(png()).decode()
    documents = [
        Document(content="words", blob=ByteStream(png(), mime_type="image/png")),
        Document(blob=ByteStream.from_file_path(path)),  # without a MIME type
        Document(blob=ByteStream(png(), mime_type="application/octet-stream"), meta={"image_path": "other.png"}),
        Document(content="words", meta={"file_path": str(path)}),
        Document(content="words", meta={"image_path": str(path)}),
        Document(content="words", meta={"image": packed}),
        Document(content="words", meta={"image_url": f"data:image/png;base64,{packed}"}),
    ]
    scorer = real()
    (alone,) = scorer.rank(QUESTION, [factories.page_image(0)])
    for given in documents:
        (found,) = ranked(MMRHRanker(reranker=scorer), [given])
        assert found.score == pytest.approx(alone.score, abs=1e-9), given
        assert type(found.score) is float


def test_blobs_that_are_no_pictures_do_not_count(reranker: StubReranker) -> None:
    documents = [
        doc(0.5, blob=ByteStream(b"words", mime_type="text/plain")),
        doc(0.4, blob=ByteStream(b"words")),
        doc(0.3, blob=ByteStream(png(), mime_type="audio/wav")),
    ]
    assert [it.score for it in ranked(MMRHRanker(reranker=reranker), documents)] == [0.5, 0.4, 0.3]
    with pytest.raises(PageError, match="nothing to score"):
        ranked(MMRHRanker(reranker=reranker), [Document(blob=ByteStream(b"words"))])
    with pytest.raises(PageError, match="not an image"):
        ranked(MMRHRanker(reranker=reranker), [doc(0.5, blob=ByteStream(b"words", mime_type="image/png"))])


def test_a_pdf_in_a_blob_needs_its_page(pdf: Path, reranker: StubReranker) -> None:
    for kind in ("application/pdf", None):
        blob = ByteStream.from_file_path(pdf, mime_type=kind)
        ranked(MMRHRanker(reranker=reranker), [Document(blob=blob, meta={"page_number": 2})])
        assert (reranker.calls[-1][0].text or "").strip() == "lifeboat crew"
        with pytest.raises(PageError, match="3 pages"):
            ranked(MMRHRanker(reranker=reranker), [Document(content="words", blob=blob)])


@pytest.mark.parametrize(
    ("meta", "settings"),
    [
        ({"page_number": 2}, {}),  # Haystack's splitters
        ({"page": 2}, {}),
        ({"page": 1}, {"page_base": 0}),
        ({"sheet": 2, "page_number": 3}, {"page_key": "sheet"}),
    ],
)
def test_pages_are_counted_from_one(
    pdf: Path, reranker: StubReranker, meta: dict[str, Any], settings: dict[str, Any]
) -> None:
    given = Document(content="words", meta={"file_path": str(pdf), **meta})
    ranked(MMRHRanker(reranker=reranker, **settings), [given])
    ((page,),) = reranker.calls
    assert (page.index, (page.text or "").strip()) == (1, "lifeboat crew")
    assert page.image is not None


def test_page_zero_does_not_exist(pdf: Path, reranker: StubReranker) -> None:
    given = Document(content="words", meta={"file_path": str(pdf), "page_number": 0})
    with pytest.raises(PageError, match="counted from 1"):
        ranked(MMRHRanker(reranker=reranker), [given])


def test_names_alone_are_looked_for_in_the_allowed_root(
    pdf: Path, reranker: StubReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pdf.parent / "in").mkdir()
    (pdf.parent / "in" / "a.png").write_bytes(png())
    rooted = MMRHRanker(reranker=reranker, allowed_root=pdf.parent)
    ranked(rooted, [Document(content="words", meta={"file_path": "report.pdf", "page_number": 2})])
    assert reranker.calls[-1][0].index == 1
    ranked(rooted, [Document(meta={"file_path": "in/a.png"})])
    assert reranker.calls[-1][0].image == pdf.parent / "in" / "a.png"
    with pytest.raises(PageError, match="outside"):
        ranked(rooted, [Document(meta={"file_path": str(REPORT), "page_number": 1})])
    with pytest.raises(PageError, match="outside"):
        ranked(
            MMRHRanker(reranker=reranker, allowed_root=pdf.parent / "in"),
            [Document(meta={"file_path": "../report.pdf", "page_number": 1})],
        )
    monkeypatch.chdir(pdf.parent)
    ranked(MMRHRanker(reranker=reranker), [Document(meta={"file_path": "report.pdf", "page_number": 3})])
    assert reranker.calls[-1][0].index == 2


def test_a_page_that_is_not_found(reranker: StubReranker) -> None:
    given = doc(0.5, meta={"file_path": "elsewhere.pdf", "page_number": 2})  # as converters write it by default
    with pytest.warns(UserWarning, match=r"elsewhere\.pdf is a file's name") as caught:
        (found,) = ranked(MMRHRanker(reranker=reranker), [given])
    assert found.score == 0.5
    assert caught[0].filename == __file__
    with pytest.raises(PageError, match="elsewhere"):
        ranked(MMRHRanker(reranker=reranker, on_missing_page="raise"), [given])
    assert ranked(MMRHRanker(reranker=reranker, on_missing_page="drop"), [given]) == []


def test_urls_need_permission_and_private_ones_are_refused(reranker: StubReranker) -> None:
    given = [Document(meta={"image_url": "http://127.0.0.1/a.png"})]
    with pytest.raises(PageError, match="allow_urls=True"):
        ranked(MMRHRanker(reranker=reranker), given)
    with pytest.raises(PageError, match="not a public address"):
        ranked(MMRHRanker(reranker=reranker, allow_urls=True), given)


# Results


def test_best_first_top_k_threshold_and_equals_in_order(reranker: StubReranker) -> None:
    documents = [doc(0.25, id="a"), doc(0.5, id="b"), doc(0.25, id="c"), doc(0.75, id="d")]
    assert ids(ranked(MMRHRanker(reranker=reranker), documents)) == ["d", "b", "a", "c"]
    ranker = MMRHRanker(reranker=reranker, top_k=2)
    assert ids(ranked(ranker, documents)) == ["d", "b"]
    assert ids(ranked(ranker, documents, top_k=3)) == ["d", "b", "a"]
    assert ids(ranked(ranker, documents, score_threshold=0.6)) == ["d"]
    assert ids(ranked(MMRHRanker(reranker=reranker, score_threshold=0.3), documents)) == ["d", "b"]
    with pytest.raises(SettingsError, match="top_k is a whole number of at least 1"):
        ranked(ranker, documents, top_k=0)


def test_of_documents_with_one_id_the_best_before_is_ranked(reranker: StubReranker) -> None:
    documents = [doc(0.2, id="a", score=1.0), doc(0.9, id="b"), doc(0.2, id="a", score=3.0), doc(0.2, id="a")]
    found = ranked(MMRHRanker(reranker=reranker), documents)
    assert ids(found) == ["b", "a"]
    assert found[1].meta == {"retrieval_score": 3.0}
    assert len(reranker.calls[-1]) == 2


def test_input_is_untouched_and_ids_and_metadata_stay(reranker: StubReranker) -> None:
    documents = [
        doc(0.25, meta={"title": "a", "nested": {"x": 1}}, score=0.9, embedding=[0.5]),
        Document(blob=ByteStream(png(), mime_type="image/png")),
    ]
    before = copy.deepcopy(documents)
    found = ranked(MMRHRanker(reranker=reranker, with_regions=True), documents)
    for result in found:
        result.meta["more"] = 1
    assert documents == before
    assert sorted(ids(found)) == sorted(ids(documents))
    words = next(it for it in found if it.content)
    assert (words.meta["title"], words.embedding) == ("a", [0.5])


def test_stale_notes_do_not_survive_and_the_first_stage_s_score_is_kept(reranker: StubReranker) -> None:
    given = doc(0.25, meta={"retrieval_score": 5.0, "mmrh_regions": [1], "mmrh_error": "old"}, score=0.9)
    (found,) = ranked(MMRHRanker(reranker=reranker), [given])
    assert (found.score, found.meta) == (0.25, {"retrieval_score": 0.9})
    (found,) = ranked(MMRHRanker(reranker=reranker, keep_retrieval_score=False), [given])
    assert found.meta == {}


def test_on_error(reranker: StubReranker) -> None:
    documents = [Document(meta={"image_path": "missing.png"}, id="bad", score=1.0), doc(0.5, id="good")]
    with pytest.raises(PageError, match="no such file"):
        ranked(MMRHRanker(reranker=reranker), documents)
    last = ranked(MMRHRanker(reranker=reranker, on_error="last"), documents)
    assert [(it.id, it.score) for it in last] == [("good", 0.5), ("bad", None)]
    assert "no such file" in last[1].meta["mmrh_error"]
    assert ids(ranked(MMRHRanker(reranker=reranker, on_error="drop"), documents)) == ["good"]


def test_real_regions_are_those_of_the_core(pdf: Path) -> None:
    scorer = real()
    best = scorer.rank_regions(QUESTION, [read_pdf(pdf, layout=True)[1]])[0]
    given = Document(content="words", meta={"file_path": str(pdf), "page_number": 2})
    (found,) = ranked(MMRHRanker(reranker=scorer, with_regions=True, regions_per_page=2), [given])
    regions = found.meta["mmrh_regions"]
    assert 1 <= len(regions) <= 2
    assert regions[0]["box"] == pytest.approx(list(best.box))
    assert regions[0]["score"] == pytest.approx(best.score, abs=1e-9)
    json.dumps(regions)


def test_scores_are_blended_with_those_of_the_retriever(reranker: StubReranker) -> None:
    documents = [doc(0.3, id="a", score=0.9), doc(0.6, id="b", score=0.1), doc(0.5, id="c", score=0.8)]
    found = ranked(MMRHRanker(reranker=reranker, fuse="blend", retrieval_weight=1.0), documents)
    assert ids(found) == ["a", "c", "b"]
    assert [it.meta["retrieval_score"] for it in found] == [0.9, 0.8, 0.1]
    assert sum(it.score or 0 for it in found) == pytest.approx(1)
    assert ids(ranked(MMRHRanker(reranker=reranker), documents)) == ["b", "c", "a"]


def test_empty_input_and_empty_questions(reranker: StubReranker) -> None:
    ranker = MMRHRanker(reranker=reranker)
    assert ranker.run(query=QUESTION, documents=[]) == {"documents": []}
    assert reranker.calls == []
    with pytest.raises(QuestionError, match="empty"):
        ranker.run(query=" ", documents=[doc(0.5)])


def test_batches_are_bounded_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = real(token_budget=700)
    engine = type(scorer.engine())
    ask, windows = engine.ask, []

    def spied(self: Any, window: Any, *args: Any, **more: Any) -> Any:
        windows.append(len(window))
        return ask(self, window, *args, **more)

    monkeypatch.setattr(engine, "ask", spied)
    documents = [Document(blob=ByteStream(png(seed), mime_type="image/png")) for seed in range(40)]
    assert len(ranked(MMRHRanker(reranker=scorer), documents)) == 40
    assert len(windows) > 1
    assert max(windows) <= 700


# Async and threads


def test_async_leaves_the_loop_free(reranker: StubReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = reranker.rank
    monkeypatch.setattr(reranker, "rank", lambda *args, **more: (time.sleep(0.2), rank(*args, **more))[1])
    ranker, documents = MMRHRanker(reranker=reranker), [doc(0.25), doc(0.5)]

    async def beside() -> tuple[Any, int]:
        turns, task = 0, asyncio.ensure_future(ranker.run_async(QUESTION, documents, top_k=1))
        while not task.done():
            await asyncio.sleep(0.005)
            turns += 1
        return task.result(), turns

    found, turns = asyncio.run(beside())
    assert turns > 5
    assert found == ranker.run(QUESTION, documents, top_k=1)


def test_eight_threads_give_the_scores_of_one() -> None:
    pages = [Document(meta={"file_path": str(REPORT), "page_number": number}) for number in (1, 2, 3)]

    def ask(ranker: MMRHRanker, number: int) -> list[Any]:
        found = ranker.run(f"{QUESTION} {number}", pages)["documents"]
        return [(it.meta["page_number"], it.score) for it in found]

    alone, together = MMRHRanker(reranker=real()), MMRHRanker(reranker=real())
    expected = [ask(alone, number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: ask(together, number), range(8))) == expected


# Neighbours


def marks(documents: list[Document]) -> list[tuple[int, int | None]]:
    return [(it.meta["page_number"], it.meta.get("mmrh_neighbour_of")) for it in documents]


def test_neighbours_among_the_candidates_come_along_marked(reranker: StubReranker, pdf: Path) -> None:
    documents = [
        Document(content=f"words {number}", meta={"file_path": str(pdf), "page_number": number, "mmrh_neighbour_of": 9})
        for number in (3, 2, 1)  # page 1 is the whitest
    ]
    found = ranked(MMRHRanker(reranker=reranker, top_k=1, neighbours="next"), documents)
    assert marks(found) == [(1, None), (2, 1)]
    assert (found[0].score or 0) > (found[1].score or 0) > 0
    assert documents[0].meta["mmrh_neighbour_of"] == 9


@pytest.mark.parametrize("named", ["path", "name"])
def test_a_document_is_made_from_the_pdf_and_leads_to_its_page_again(
    reranker: StubReranker, pdf: Path, named: str
) -> None:
    ranker = MMRHRanker(reranker=reranker, neighbours="previous", allowed_root=pdf.parent)
    file = str(pdf) if named == "path" else pdf.name
    hit, beside = ranked(ranker, [Document(content="words", meta={"file_path": file, "page_number": 2})])
    assert marks([hit, beside]) == [(2, None), (1, 1)]
    assert ((beside.content or "").strip(), beside.id, beside.score) == ("harbour wall", f"{pdf}#0", None)
    ranked(ranker, [beside])
    assert reranker.calls[-1][0].index == 0
    keyed = MMRHRanker(reranker=reranker, neighbours="next", page_key="sheet", page_base=0)
    _, beside = ranked(keyed, [Document(content="words", meta={"file_path": str(pdf), "sheet": 0})])
    assert beside.meta["sheet"] == 1


def test_a_neighbour_without_text_has_no_content(tmp_path: Path, reranker: StubReranker) -> None:
    document = pymupdf.open()
    for _ in range(2):
        document.new_page(width=200, height=300).draw_rect((0, 0, 100, 100), fill=(0, 0, 0))
    document.save(tmp_path / "scan.pdf")
    given = Document(meta={"file_path": str(tmp_path / "scan.pdf"), "page_number": 1})
    _, beside = ranked(MMRHRanker(reranker=reranker, neighbours="next"), [given])
    assert beside.content is None
