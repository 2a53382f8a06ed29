"""Evaluations as tables, sentences and pictures."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mmrh_retriever.evaluation import Evaluation, evaluate
from mmrh_retriever.evaluation.mmdocir import MMDocIR
from mmrh_retriever.evaluation.rankers import RankerSpec
from mmrh_retriever.evaluation.tables import (
    comparisons,
    group_table,
    label,
    markdown_tables,
    more_table,
    notes,
    overall_table,
    plot_comparison,
    result_tables,
    source_table,
)
from mmrh_retriever.runs.tables import print_tables
from tests.evaluation.oracle import Oracle


@pytest.fixture
def found(data: MMDocIR, tmp_path: Path) -> Evaluation:
    return evaluate(data, {"oracle": Oracle(), "random": RankerSpec("random")}, tmp_path / "out")


def test_the_table_of_all_rankers(found: Evaluation) -> None:
    table = overall_table(found)
    assert table.title == "Page level: 9 questions about 3 documents, in %"
    assert table.columns[:2] == ("", "micro R@1")
    assert table.columns[-1] == "macro R@5"
    oracle, random = table.rows
    assert [cell.text for cell in oracle[:3]] == ["oracle", "100.0 (100.0–100.0)", "100.0 (100.0–100.0)"]
    assert oracle[1].best
    assert not random[1].best
    assert {oracle[3].best, random[3].best} == {False}  # both find all within five pages
    assert random[4].text == f"{100 * found.summaries['random'].macro['recall@1']:.1f}"


def test_further_measures_have_a_table(found: Evaluation, data: MMDocIR, tmp_path: Path) -> None:
    table = more_table(found)
    assert table.columns == ("", "R@10", "hit@1", "hit@3", "hit@5", "hit@10", "MRR")
    assert {cell.text for cell in table.rows[0][1:]} == {"100.0"}
    boxes = evaluate(data, {"oracle": Oracle()}, tmp_path / "boxes", level="layout")
    assert more_table(boxes).columns[1:5:3] == ("capped@1", "coverage@1")
    assert more_table(boxes) in result_tables(boxes)


def test_documents_with_and_without_text_stand_apart(found: Evaluation) -> None:
    table = source_table(found)
    assert table.title == "By text layer, micro: text layer 6 questions, scan 3 questions"
    assert table.columns[1:5:3] == ("text layer R@1", "scan R@1")
    assert [cell.text for cell in table.rows[0][4:]] == ["100.0 (100.0–100.0)", "100.0", "100.0"]


def test_groups_are_rows(found: Evaluation) -> None:
    table = group_table(found, "by_domain", "recall@3")
    assert table.columns == ("domain", "questions", "oracle", "random")
    assert [[cell.text for cell in row[:3]] for row in table.rows] == [["Law", "5", "100.0"], ["News", "4", "100.0"]]
    assert group_table(found, "by_type").title == "R@1 by evidence, in %"
    assert len(result_tables(found)) == 5


def test_differences_are_told_in_words(found: Evaluation) -> None:
    (sentence,) = comparisons(found)
    apart = found.compare("oracle", "random", "recall@1")
    assert sentence.startswith(f"oracle {100 * apart.difference:.1f} points above random in R@1 (95 % +")
    assert sentence.endswith("significant at 5 %)")
    turned = Evaluation("page", dict(reversed(found.parts.items())), dict(reversed(found.summaries.items())))
    assert "points below oracle" in comparisons(turned)[0]
    assert label("bm25") == "BM25"


def test_tables_in_the_terminal_and_in_markdown(found: Evaluation) -> None:
    console = Console(width=100, file=io.StringIO())
    assert all(console.measure(table.rich()).maximum <= 100 for table in result_tables(found))
    print_tables(result_tables(found), console)
    text = console.file.getvalue()
    assert "100.0 (100.0–100.0)*" in text
    assert "…" not in text
    assert text.index("macro") < text.index(notes(found)[0]) < text.index("By text layer")
    markdown = markdown_tables(found)
    assert "| oracle | **100.0 (100.0–100.0)** |" in markdown
    assert "Page level: 9 questions" in markdown
    assert f"- {notes(found)[0]}" in markdown
    assert found.as_dict("oracle")["by_domain"]["Law"]["recall@1"] == 1


def test_one_ranker_alone_is_not_the_best(data: MMDocIR, tmp_path: Path) -> None:
    alone = evaluate(data, {"oracle": Oracle()}, tmp_path / "alone")
    assert not any(cell.best for table in result_tables(alone) for row in table.rows for cell in row)
    assert comparisons(alone) == []


def test_intervals_by_source(found: Evaluation) -> None:
    assert found.interval("oracle", "recall@1", source="scan").mean == 1
    macro = found.interval("random", "recall@1", macro=True)
    assert macro.mean == pytest.approx(found.summaries["random"].macro["recall@1"])


def test_the_plot_is_a_picture(found: Evaluation, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib for plots")
    from PIL import Image

    plot_comparison(found, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert min(image.size) > 300
