"""``mmrh rank``: files and folders, boxes in heat maps and JSON, messages in the command's own options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pymupdf
import pytest
from PIL import Image

from mmrh_retriever import read_pdf
from mmrh_retriever.cli.options import _in_options
from tests.cli.conftest import Mmrh
from tests.factories import page_image

QUESTION = "How did revenue change?"
TEXT = "Revenue grew by a third in the last quarter, and the number of ships in the harbour grew with it."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``a/report.pdf``, ``b/report.PDF``, ``b/scan.png`` and what is no page."""
    for name in ("a/report.pdf", "b/report.PDF"):
        made = pymupdf.open()
        made.new_page(width=300, height=200).insert_textbox((20, 20, 280, 180), TEXT, fontsize=14)
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        made.save(tmp_path / "in" / name)
    page_image(1).save(tmp_path / "in" / "b" / "scan.png")
    (tmp_path / "in" / "notes.txt").write_text("no page")
    (tmp_path / "in" / "._report.pdf").write_text("no page either")
    return tmp_path / "in"


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_folders_and_files_are_ranked_together(mmrh: Mmrh, model: Path, folder: Path, tmp_path: Path) -> None:
    single = tmp_path / "page.jpg"
    page_image(2).save(single)
    one_too_many = folder / "b" / "scan.png"  # in the folder, too
    done = mmrh("rank", folder, single, one_too_many, QUESTION, "--model", model, "--json", "--top-n", 9)
    assert done.code == 0, done.stderr
    found = sorted(str(row["document"]) for row in rows(done.stdout))
    assert found == sorted(["page.jpg", "scan.png", "report.pdf", "report.PDF"])


def test_files_of_one_name_have_names_of_their_own(mmrh: Mmrh, model: Path, folder: Path) -> None:
    (folder / "b" / "report.PDF").rename(folder / "b" / "report.pdf")
    done = mmrh("rank", folder, QUESTION, "--model", model, "--json")
    named = {str(row["document"]) for row in rows(done.stdout)}
    assert named == {"scan.png", str(folder / "a" / "report.pdf"), str(folder / "b" / "report.pdf")}


def test_a_folder_without_pages_and_one_in_the_questions_stead(mmrh: Mmrh, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = mmrh("rank", tmp_path / "empty", QUESTION)
    assert (done.code, done.stdout) == (1, "")
    assert "no PDF and no image stands in this folder" in done.stderr
    for question in (folder, folder / "a" / "report.pdf"):
        done = mmrh("rank", folder, question)
        assert done.code == 2
        assert "must be the question" in done.stderr
    done = mmrh("rank", tmp_path / "empty", "why? " * 2000)  # no file can have such a name
    assert "no PDF and no image" in done.stderr


def test_regions_bring_text_and_page_size_and_are_drawn(mmrh: Mmrh, model: Path, folder: Path, tmp_path: Path) -> None:
    given = ("rank", folder / "a" / "report.pdf", QUESTION, "--model", model)
    done = mmrh(*given, "--regions", "--json", "--heatmap", tmp_path / "boxes")
    assert done.code == 0, done.stderr
    (page,) = read_pdf(folder / "a" / "report.pdf", layout=True)
    found = rows(done.stdout)
    assert [row["text"] for row in found] == [region.text for region in page.regions]
    assert all(row["page_size"] == [300.0, 200.0] for row in found)
    assert list(found[0]) == ["rank", "document", "page", "kind", "text", "box", "page_size", "score"]
    alone = mmrh(*given, "--regions", "--json")
    assert [row["score"] for row in rows(alone.stdout)] == pytest.approx([row["score"] for row in found], abs=1e-6)

    mmrh(*given, "--heatmap", tmp_path / "plain")
    name = "01-report-page-1.png"
    with Image.open(tmp_path / "boxes" / name) as boxes, Image.open(tmp_path / "plain" / name) as plain:
        apart = np.abs(np.asarray(boxes, dtype=int) - np.asarray(plain, dtype=int)).max(axis=2)
        changed = np.argwhere(apart > 40)
    box = np.array(found[0]["box"]) * boxes.width / 300
    assert len(changed) > 50
    assert changed.max(axis=0) == pytest.approx(box[[3, 2]], abs=8)  # the frame's end; its rank stands at its beginning

    shown = mmrh(*given, "--regions").stdout
    assert QUESTION in shown
    assert "Revenue grew" in shown
    assert TEXT not in shown  # shortened for people


def test_messages_speak_of_the_commands_own_options(mmrh: Mmrh, model: Path, folder: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.pdf"
    with pymupdf.open(folder / "a" / "report.pdf") as document:
        document.save(locked, encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="open", owner_pw="own")
    done = mmrh("rank", locked, QUESTION, "--model", model)
    assert done.code == 1
    assert "Give its --password." in done.stderr
    assert mmrh("rank", locked, QUESTION, "--model", model, "--password", "open").code == 0
    done = mmrh("rank", folder / "a" / "report.pdf", QUESTION, "--pages", "7")
    assert "--pages '7' names no pages" in done.stderr
    done = mmrh("rank", folder / "b" / "scan.png", QUESTION, "--model", model, "--token-budget", 3)
    assert "--token-budget 3 leaves no room" in done.stderr


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Lower token_budget or max_pixels.", "Lower --token-budget or --max-pixels."),
        ("leave the page out with pages=.", "leave the page out with --pages."),
        ("pages='9' names no pages", "--pages '9' names no pages"),
        ("/data/pages=3/a.pdf: 3 pages, mmrh_token_budget", "/data/pages=3/a.pdf: 3 pages, mmrh_token_budget"),
        ("with strict=False", "with strict=False"),
        ("other settings: token_budget: was 3, now 4", "other settings: token_budget: was 3, now 4"),
        ("Go on with it (resume=True), or not.", "Go on with it (--resume), or not."),
    ],
)
def test_arguments_become_options(message: str, expected: str) -> None:
    assert _in_options(message, ["pages", "max_pixels", "token_budget", "resume"]) == expected


def test_hybrid_rows_have_both_parts_of_the_score(mmrh: Mmrh, model: Path, folder: Path) -> None:
    given = ("rank", folder, "How did revenue grow?", "--model", model, "--top-n", 9)
    found = rows(mmrh(*given, "--hybrid", "--json").stdout)
    plain = {row["document"]: row["score"] for row in rows(mmrh(*given, "--json").stdout)}
    assert [list(row) for row in found] == 3 * [["rank", "document", "page", "score", "attention_score", "text_score"]]
    for row in found:
        assert row["attention_score"] == pytest.approx(plain[row["document"]], rel=1e-6)
        assert (row["text_score"] is None) == (row["document"] == "scan.png")
        best = rows(mmrh(*given, "--hybrid", "--json", "--top-n", row["rank"]).stdout)
        assert best == found[: len(best)], "a row does not depend on which others are shown"
    shown = mmrh(*given, "--hybrid", "--markdown").stdout
    assert "| rank | document | page | score | attention_score | text_score |" in shown
    single = mmrh("rank", folder / "b" / "scan.png", "revenue", "--model", model, "--hybrid", "--json").stdout
    assert [list(row) for row in rows(single)] == [["rank", "document", "page", "score"]], "no page has text"


def test_neighbours_stand_behind_their_hit(mmrh: Mmrh, model: Path, tmp_path: Path) -> None:
    first, *others = [page_image(seed) for seed in range(5)]
    first.save(tmp_path / "scan.pdf", save_all=True, append_images=others)
    page_image(9).save(tmp_path / "alone.png")
    given = ("rank", tmp_path, QUESTION, "--model", model, "--json")
    ranked = {(row["document"], row["page"]): row for row in rows(mmrh(*given, "--top-n", 9).stdout)}
    best = list(ranked)[:2]
    found = rows(mmrh(*given, "--top-n", 2, "--neighbours", "both").stdout)
    hits = [row for row in found if row["neighbour_of"] is None]
    assert [(row["document"], row["page"]) for row in hits] == best
    beside = {(name, page + step) for name, page in best for step in (-1, 1)} & set(ranked) - set(best)
    shown = [(row["document"], row["page"]) for row in found if row not in hits]
    assert sorted(shown) == sorted(beside)
    for row in found:
        page = row["document"], row["page"]
        assert {**ranked[page], "neighbour_of": row["neighbour_of"]} == row, "rank and score are its own"
        if row not in hits:
            (hit,) = (other for other in hits if other["rank"] == row["neighbour_of"])
            assert (hit["document"], abs(hit["page"] - row["page"])) == (row["document"], 1)
            assert found.index(hit) < found.index(row)
    refused = mmrh(*given, "--neighbours", "next", "--regions")
    assert (refused.code, refused.stdout) == (2, "")
    assert "goes with pages, not with --regions" in refused.stderr


def test_regions_that_pdfium_does_not_find(mmrh: Mmrh, folder: Path) -> None:
    refused = mmrh("rank", folder, QUESTION, "--regions", "--pdf-backend", "pdfium")
    assert (refused.code, refused.stdout) == (2, "")
    assert "leave --pdf-backend out" in " ".join(refused.stderr.replace("│", " ").split())
