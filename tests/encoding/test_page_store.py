"""Pages kept for later calls: the same scores, nothing run twice, nothing stale or damaged taken back."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path

import pytest
from PIL import Image

from mmrh_retriever import Page, PageStore, PromptOptions, Reranker, SettingsError
from tests.factories import TEXT_ONLY, page_image, tiny

QUESTION = "How did revenue change?"


def reranker_for(name: str = "qwen3_vl", *, seed: int = 0, heads: str = "all", **options: object) -> Reranker:
    model = tiny(name, seed=seed)
    return Reranker(model.model, (model.tokenizer, model.image_processor), heads, **options)  # type: ignore[arg-type]


def some_pages(name: str = "qwen3_vl", count: int = 4) -> list[Page]:
    if name in TEXT_ONLY:
        return [Page(text=f"Revenue grew by {number} percent.", index=number) for number in range(count)]
    return [Page(image=page_image(seed), index=seed) for seed in range(count)]


def scores(reranker: Reranker, pages: list[Page]) -> list[float]:
    ranked = reranker.rank(QUESTION, pages, with_tokens=True)
    return [scored.score for scored in sorted(ranked, key=lambda scored: scored.position)]


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "mistral3", "llama", "mistral4", "gemma4_shared"]
)
def test_any_selection_of_pages_seen_before_costs_the_question_alone(name: str, tmp_path: Path) -> None:
    pages = some_pages(name)
    plain = reranker_for(name, independent=True)
    store = PageStore(folder=tmp_path)
    reranker = reranker_for(name, independent=True, store=store)
    assert scores(reranker, pages) == pytest.approx(scores(plain, pages), abs=1e-6)
    assert (store.hits, store.misses, len(store)) == (0, 4, 4)
    computed = reranker.vision.computed
    picked = [pages[3], pages[1]]
    assert scores(reranker, picked) == pytest.approx(scores(plain, picked), abs=1e-6)
    assert (store.hits, store.misses) == (2, 4)
    encoded = reranker.encode(picked)
    assert [scored.position for scored in encoded.rank(QUESTION)] == [
        scored.position for scored in plain.rank(QUESTION, picked)
    ]
    assert reranker.vision.computed == computed
    later = reranker_for(name, independent=True, store=PageStore(folder=tmp_path))
    assert scores(later, picked) == pytest.approx(scores(plain, picked), abs=1e-6)
    assert (later.vision.computed, later.store.hits, later.store.misses) == (0, 2, 0)
    grids = [scored.grid for scored in later.rank(QUESTION, picked, with_tokens=True)]
    expected = [scored.grid for scored in plain.rank(QUESTION, picked, with_tokens=True)]
    assert [grid is None for grid in grids] == [grid is None for grid in expected]
    for grid, same in zip(grids, expected, strict=True):
        assert grid is None or (grid.boxes == same.boxes).all()


def test_pages_of_several_documents_are_found_in_any_company() -> None:
    store = PageStore()
    reranker = reranker_for(independent=True, store=store)
    pages = [Page(image=page_image(seed), doc_id=name, index=3) for seed, name in ((1, "a.pdf"), (2, "b.pdf"))]
    both = scores(reranker, pages)
    assert scores(reranker, pages[::-1]) == pytest.approx(both[::-1], abs=1e-6)
    assert (store.hits, store.misses) == (2, 2)


class Drawn:
    """A page's image that counts how often it is drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.times = 0

    def load(self) -> Image.Image:
        self.times += 1
        return page_image(self.seed)


@pytest.mark.parametrize("independent", [True, False])
def test_a_page_is_drawn_once_a_call(independent: bool) -> None:
    reranker = reranker_for(independent=independent, store=PageStore())
    sources = [Drawn(1), Drawn(2)]
    pages = [Page(image=source) for source in sources]
    for calls in (1, 2):
        scores(reranker, pages)
        assert [source.times for source in sources] == [calls, calls]


def test_pages_read_together_are_found_behind_the_same_pages_only() -> None:
    store = PageStore()
    pages = some_pages()
    plain, reranker = reranker_for(), reranker_for(store=store)
    assert scores(reranker, pages) == pytest.approx(scores(plain, pages), abs=1e-6)
    assert scores(reranker, pages[:3]) == pytest.approx(scores(plain, pages[:3]), abs=1e-6)
    assert (store.hits, store.misses) == (3, 4)
    turned = pages[::-1]
    assert scores(reranker, turned) == pytest.approx(scores(plain, turned), abs=1e-6)
    assert (store.hits, store.misses) == (3, 8)


def test_models_heads_and_prompts_do_not_meet_in_one_store() -> None:
    store = PageStore()
    pages = some_pages(count=2)
    for options in (
        {},
        {"seed": 3},
        {"independent": True},
        {"options": PromptOptions(instruction="Read these pages.")},
        {"heads": "all"},
    ):
        kept = reranker_for(**options, store=store)  # type: ignore[arg-type]
        assert scores(kept, pages) == pytest.approx(scores(reranker_for(**options), pages), abs=1e-6)  # type: ignore[arg-type]
    assert (store.hits, store.misses) == (2, 8), "only the first and the last are the same"
    shallow = reranker_for(store=store).with_heads(tmp_heads())
    assert scores(shallow, pages) == pytest.approx(scores(reranker_for().with_heads(tmp_heads()), pages), abs=1e-6)
    assert store.misses == 10


def tmp_heads() -> object:
    from mmrh_retriever import HeadSet

    return HeadSet.parse("0-1,1-2")


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "stale"])
def test_what_cannot_be_used_is_refused_and_made_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pages = some_pages(count=2)
    maker = reranker_for(independent=True, seed=3 if damage == "stale" else 0, store=PageStore(folder=tmp_path))
    scores(maker, pages)
    files = sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".safetensors"] * 2, "no half-written file is left"
    for file in files:
        content = bytearray(file.read_bytes())
        if damage == "flip":
            content[-40] ^= 1
        elif damage == "cut":
            del content[-100:]
        elif damage == "other":
            content = bytearray(b"not safetensors")
        file.write_bytes(content)
    expected = scores(reranker_for(independent=True), pages)
    store = PageStore(folder=tmp_path)
    with caplog.at_level(logging.WARNING, logger="mmrh_retriever.encoding.page_store"):
        assert scores(reranker_for(independent=True, store=store), pages) == pytest.approx(expected, abs=1e-6)
    assert store.misses == 2
    assert caplog.text.count("is not used and will be made again") == 2
    if damage == "stale":
        assert "another model, processor or prompt" in caplog.text
    again = PageStore(folder=tmp_path)
    assert scores(reranker_for(independent=True, store=again), pages) == pytest.approx(expected, abs=1e-6)
    assert again.hits == 2


def test_memory_is_bounded_and_the_oldest_go_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = some_pages(count=3)
    whole = PageStore()
    expected = scores(reranker_for(independent=True, store=whole), pages)
    store = PageStore(memory=whole.nbytes - 1)
    reranker = reranker_for(independent=True, store=store)
    assert scores(reranker, pages) == pytest.approx(expected, abs=1e-6)
    assert len(store) == 2
    assert 0 < store.nbytes < whole.nbytes
    reranker.rank(QUESTION, pages[1:])
    assert store.hits == 2
    reranker.rank(QUESTION, pages[:1])
    assert store.misses == 4
    store.clear()
    assert (len(store), store.nbytes) == (0, 0)
    disk = PageStore(memory=0, folder=tmp_path / "made" / "here")
    for _ in range(2):
        assert scores(reranker_for(independent=True, store=disk), pages) == pytest.approx(expected, abs=1e-6)
    assert (len(disk), disk.hits) == (0, 3)
    shutil.rmtree(tmp_path / "made")
    with caplog.at_level(logging.WARNING, logger="mmrh_retriever.encoding.page_store"):
        assert scores(reranker_for(independent=True, store=disk), pages) == pytest.approx(expected, abs=1e-6)
    assert "could not be written" in caplog.text


def test_the_folder_is_bounded_and_pages_used_longest_ago_are_deleted(tmp_path: Path) -> None:
    pages = some_pages()
    folder = tmp_path / "pages"
    other = folder / "notes.txt"
    scores(reranker_for(independent=True, store=PageStore(folder=folder)), pages[:1])
    (first,) = folder.iterdir()
    size = first.stat().st_size
    other.write_text("not ours")
    small = reranker_for(independent=True, store=PageStore(0, folder, disk=3 * size + size // 2))
    scores(small, pages[1:3])
    scores(small, pages[:1])  # the oldest file is used again
    scores(small, pages[3:])
    kept = set(folder.glob("*.safetensors"))
    assert len(kept) == 3
    assert first in kept
    assert other.read_text() == "not ours"
    later = reranker_for(independent=True, store=PageStore(folder=folder))
    assert scores(later, pages) == pytest.approx(scores(reranker_for(independent=True), pages), abs=1e-6)
    assert (later.store.hits, later.store.misses) == (3, 1)
    scores(reranker_for(independent=True, store=PageStore(0, folder, disk=0)), [Page(image=page_image(77))])
    assert not list(folder.glob("*.safetensors"))


def test_what_a_store_refuses(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not negative"):
        PageStore(memory=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="is a file"):
        PageStore(folder=tmp_path / "file")


def test_a_call_whose_own_pages_do_not_fit_says_so_once(tmp_path: Path) -> None:
    pages = [Page(image=page_image(number)) for number in range(4)]
    model = tiny("qwen3_vl")
    whole = PageStore()
    settings = {"independent": True, "check": False}
    given = (model.model, (model.tokenizer, model.image_processor), "all")
    Reranker(*given, store=whole, **settings).rank("How?", pages)
    small = PageStore(whole.nbytes * 2 // len(pages) + 1)
    with pytest.warns(UserWarning, match="holds [12] of the pages of this call.*page_memory") as caught:
        Reranker(*given, store=small, **settings).rank("How?", pages)
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Reranker(*given, store=PageStore(small.memory, tmp_path), **settings).rank("How?", pages)
