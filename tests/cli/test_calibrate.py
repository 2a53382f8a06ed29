"""``mmrh calibrate``, and probabilities in ``mmrh rank``."""

from __future__ import annotations

import json
from pathlib import Path

import pymupdf
import pytest

from tests.cli.conftest import Mmrh
from tests.factories import page_image

pytest.importorskip("sklearn", reason="pip install scikit-learn to learn calibrations")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.pdf", "b.pdf"):
        made = pymupdf.open()
        for start in range(3):
            page = made.new_page(width=200, height=300)
            for line in range(5):
                words = " ".join(f"{name[0]}word{start}{line}{number}" for number in range(5))
                page.insert_text((10, 30 + 20 * line), words, fontsize=8)
        made.save(tmp_path / name)
    lines = [{"document": name, "question": f"{name[0]}word100?", "pages": [2]} for name in ("a.pdf", "b.pdf")]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_calibration_is_learned_and_used(
    mmrh: Mmrh, model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = folder / "calibration.json"
    made = mmrh(
        "calibrate", folder / "questions.jsonl", "--documents", folder, "--out", out, "--model", model, "--json"
    )
    assert made.code == 0, made.stderr
    rows = [json.loads(line) for line in made.stdout.splitlines()]
    assert [row["ranked"] for row in rows] == ["with the text layer", "by images alone"]
    assert list(rows[0]) == ["ranked", "auc", "false_answers", "first_auc", "expected", "found", "brier"]
    assert "Learned from 2 labelled questions about 2 documents." in made.stderr
    assert json.loads(out.read_text())["source"] == "2 labelled questions about 2 documents"
    asked = (folder / "a.pdf", "aword100?", "--model", model)
    found = mmrh("rank", *asked, "--calibration", out, "--hybrid", "--json")
    assert found.code == 0, found.stderr
    shown = [json.loads(line) for line in found.stdout.splitlines()]
    assert all(0 <= row["probability"] <= 1 for row in shown)
    most = max(row["probability"] for row in shown)
    some = mmrh("rank", *asked, "--calibration", out, "--hybrid", "--json", "--min-probability", most - 0.001)
    assert len(some.stdout.splitlines()) == sum(row["probability"] >= most - 0.001 for row in shown)
    assert "probability" in mmrh("rank", *asked, "--calibration", out).stdout
    none = mmrh("rank", *asked, "--calibration", out, "--min-probability", 1, "--heatmap", folder / "maps")
    assert (none.code, none.stdout) == (0, "")
    assert "None of 3 pages is evidence with a probability of 1 or more" in caplog.text  # the log goes to stderr
    other = mmrh("rank", *asked, "--calibration", out, "--no-calibration")
    assert other.code == 1
    assert "calibration.json does not hold here: it was learned with calibrate: True, here it is False" in other.stderr


def test_generated_questions(mmrh: Mmrh, model: Path, folder: Path) -> None:
    out = folder / "calibration.json"
    made = mmrh("calibrate", "--generate", 6, "--documents", folder, "--out", out, "--model", model)
    assert made.code == 0, made.stderr
    assert "Is the answer here? 6 generated questions about 2 documents" in made.stdout
    (folder / "b.pdf").unlink()
    one = mmrh("calibrate", "--generate", 3, "--documents", folder, "--out", out, "--model", model)
    assert one.code == 0, one.stderr
    assert one.stdout == ""
    assert "that takes two documents" in one.stderr


def test_bad_arguments(mmrh: Mmrh, model: Path, folder: Path) -> None:
    neither = mmrh("calibrate", "--documents", folder, "--out", folder / "out.json")
    assert neither.code == 2
    assert "give one of QUESTIONS and --generate, got neither" in neither.stderr
    both = mmrh("calibrate", folder / "questions.jsonl", "--generate", 3, "--documents", folder, "--out", "x")
    assert both.code == 2
    for nowhere in (folder, folder / "none" / "out.json"):
        lost = mmrh("calibrate", "--generate", 3, "--documents", folder, "--out", nowhere)
        assert lost.code == 2
        assert "expected a file in a folder that exists" in " ".join(lost.stderr.replace("│", " ").split())
    regions = mmrh("rank", folder / "a.pdf", "why?", "--regions", "--min-probability", 0.5)
    assert regions.code == 2
    assert "regions have no probability; rank pages" in regions.stderr
    without = mmrh("rank", folder / "a.pdf", "why?", "--model", model, "--min-probability", 0.5)
    assert without.code == 1
    assert "needs a calibration: no mmrh_calibration.json stands beside the model; learn one" in without.stderr


def test_what_a_few_documents_leave_open_is_said(mmrh: Mmrh, model: Path, folder: Path) -> None:
    picture = page_image(1)
    picture.save(folder / "scan.pdf", save_all=True, append_images=[page_image(2), page_image(3)])
    picture.save(folder / "single.png")
    out = folder / "calibration.json"

    def learn(*asked: tuple[str, int]) -> tuple[list[str], str]:
        lines = [{"document": name, "question": "aword100?", "pages": [page]} for name, page in asked]
        (folder / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        made = mmrh("calibrate", folder / "few.jsonl", "--documents", folder, "--out", out, "--model", model, "--json")
        assert made.code == 0, made.stderr
        assert "NaN" not in made.stdout
        return [json.loads(line)["ranked"] for line in made.stdout.splitlines()], made.stderr

    shown, said = learn(("a.pdf", 2), ("scan.pdf", 2))
    assert shown == ["by images alone"]
    assert "with the text layer can't be said, each document left out in turn: Of all documents, a.pdf alone" in said
    shown, said = learn(("a.pdf", 2), ("single.png", 1))
    assert shown == []
    assert "by images alone can't be said, each document left out in turn: 1 of 1 pages are evidence" in said


def test_pages_without_a_probability_stand_beside_others(mmrh: Mmrh, model: Path, folder: Path) -> None:
    page_image(1).save(folder / "scan.pdf", save_all=True, append_images=[page_image(2), page_image(3)])
    (folder / "scans.jsonl").write_text('{"document": "scan.pdf", "question": "aword100?", "pages": [2]}\n')
    out = folder / "calibration.json"
    made = mmrh("calibrate", folder / "scans.jsonl", "--documents", folder, "--out", out, "--model", model)
    assert made.code == 0, made.stderr
    asked = ("rank", folder, "aword100?", "--model", model, "--hybrid", "--calibration", out, "--top-n", 9)
    found = [json.loads(line) for line in mmrh(*asked, "--json").stdout.splitlines()]
    assert {row["document"]: row["probability"] is None for row in found} == {
        "a.pdf": True, "b.pdf": True, "scan.pdf": False,
    }  # fmt: skip
    table = mmrh(*asked)
    assert (table.code, "probability" in table.stdout) == (0, True), table.stderr
