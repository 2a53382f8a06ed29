"""The causal test on tiny models: which maskings there are, what rows say, how they are summed up and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmrh_retriever import HeadId, HeadSet, Page
from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.research.causal import (
    CausalRow,
    CausalSettings,
    _conditions,
    causal_journal,
    causal_rows,
    keep_rows,
    save_rows,
)
from mmrh_retriever.research.causal_tables import causal_table, plot_causal, summarise_causal
from mmrh_retriever.research.probes import Evidence, Probe
from tests.factories import Tiny, tiny

HEADS = HeadSet((HeadId(0, 1), HeadId(2, 3)), n_layers=3, n_heads=4)
CHOICES = ("nine percent", "water")


def processor(model: Tiny) -> object:
    return (model.tokenizer, model.image_processor)


def probes(number: int = 2, choices: tuple[str, ...] = CHOICES) -> list[Probe]:
    items = (Page(text="Revenue grew by nine percent."), Page(text="The report shows emissions."))
    asked = ("How did revenue change?",)
    return [
        Probe("text", f"p{i}", items, asked, (Evidence(0),), "nine percent", 512, depth=float(i % 2), choices=choices)
        for i in range(number)
    ]


def row(probe: str, masked: str, correct: float, *, seed: int | None = None, **more: object) -> CausalRow:
    given = {"task": "text", "context_length": 512, "depth": 0.0, "phase": "" if masked == "unmasked" else "all"}
    measures = {"correct": correct, "exact": correct, "contains": correct, "anls": correct, "fuzzy": correct}
    given |= {"masked": masked, "seed": seed, "heads": 2, "given": "a", "answer": "b", "chance": 0.0}
    return CausalRow(probe=probe, **{**given, **measures, **more})  # type: ignore[arg-type]


def test_maskings_have_two_controls_and_two_phases() -> None:
    unmasked, *found = _conditions(HEADS, range(3), CausalSettings(random_seeds=2))
    assert (unmasked.masked, unmasked.seed, unmasked.heads) == ("unmasked", None, ())
    assert [(one.masked, one.phase, one.seed) for one in found] == [
        *(
            (masked, phase, seed)
            for phase in ("decode", "all")
            for masked, seed in (
                ("selected", None),
                ("random", 0),
                ("random, same layers", 0),
                ("random", 1),
                ("random, same layers", 1),
            )
        )
    ]
    for one in found:
        assert len(one.heads) == 2
        if one.masked != "selected":
            assert not set(one.heads) & set(HEADS)
        if one.masked == "random, same layers":
            assert [head.layer for head in one.heads] == [0, 2]
    only = _conditions(HEADS, [1], CausalSettings(random_seeds=1, same_layers=False, phases=("all",)))
    assert [{head.layer for head in one.heads} for one in only] == [set(), {0, 2}, {1}]


def test_a_layer_that_is_mostly_selected_gives_a_mixed_control(caplog: pytest.LogCaptureFixture) -> None:
    most = HeadSet(tuple(HeadId(0, head) for head in range(3)), n_layers=3, n_heads=4)
    _conditions(most, range(3), CausalSettings(random_seeds=2))
    assert len(caplog.records) == 1
    assert "too few heads" in caplog.text


def test_random_heads_may_be_drawn_from_all(caplog: pytest.LogCaptureFixture) -> None:
    half = HeadSet(tuple(HeadId(layer, head) for layer in range(3) for head in range(3)), n_layers=3, n_heads=4)
    settings = CausalSettings(random_seeds=3, phases=("all",), random_from="all")
    drawn = [one.heads for one in _conditions(half, range(3), settings) if one.seed is not None]
    assert len(drawn) == 6
    assert all(len(heads) == 9 and set(heads) & set(half) for heads in drawn)
    assert not caplog.records, "nothing is unexpected where it was asked for"
    (masked,) = (one.heads for one in _conditions(HEADS, [0], replace(settings, random_seeds=1, same_layers=False))[2:])
    assert {head.layer for head in masked} == {0}


@pytest.mark.parametrize("how", ["choices", "generate"])
def test_rows_hold_every_answer(how: str, tmp_path: Path) -> None:
    model = tiny("llama")
    found = causal_rows(model.model, processor(model), probes(), HEADS, answering=how, random_seeds=1, max_new_tokens=3)
    rows = save_rows(found, tmp_path / "rows.jsonl")
    assert len(rows) == 2 * 7
    assert [json.loads(line)["masked"] for line in (tmp_path / "rows.jsonl").open()] == [one.masked for one in rows]
    for one in rows:
        assert one.correct in (0.0, 1.0)
        assert one.heads == (0 if one.masked == "unmasked" else 2)
        assert one.chance == 0.5
        if how == "choices":
            assert one.given in CHOICES
            assert one.correct == (one.given == "nine percent")
    unmasked = [one.given for one in rows if one.masked == "unmasked"]
    assert unmasked[0] == unmasked[1], "the same prompt has the same answer, whatever was masked in between"


def test_answers_are_kept_and_a_resumed_test_asks_the_rest(tmp_path: Path) -> None:
    model = tiny("llama")

    def run(number: int) -> list[CausalRow]:
        with causal_journal(tmp_path / "run", {"seed": 0}, resume=True) as journal:
            finished = list(journal.done)
            found = causal_rows(model.model, processor(model), probes(number), HEADS, random_seeds=1, finished=finished)
            rows = list(found)
            asked.append(list(dict.fromkeys(row.probe for row in rows)))
            return keep_rows(rows, journal)

    asked: list[list[str]] = []
    first, both = run(1), run(2)
    assert asked == [["p0"], ["p1"]]
    assert len(first) == 7
    assert both[:7] == first
    assert [row.probe for row in both[7:]] == ["p1"] * 7
    assert len((tmp_path / "run" / "journal.jsonl").read_text().splitlines()) == 2
    with pytest.raises(DataError, match="holds a causal test already"):
        causal_journal(tmp_path / "run", {"seed": 0}, resume=False)


def test_probes_without_answers_and_foreign_heads_are_refused() -> None:
    model = tiny("llama")
    silent = Probe("text", "p", (Page(text="Text."),), ("Q?",), (), "", 512)
    with pytest.raises(DataError, match="no answer"):
        list(causal_rows(model.model, processor(model), [silent], HEADS, random_seeds=1))
    foreign = HeadSet((HeadId(7, 0),), n_layers=8, n_heads=4)
    with pytest.raises(HeadSetError, match="8 layers"):
        list(causal_rows(model.model, processor(model), probes(), foreign, random_seeds=1))


def test_the_summary_averages_draws_before_probes() -> None:
    rows = [
        *(row(probe, "unmasked", 1.0) for probe in "abcd"),
        *(row(probe, "selected", 0.0) for probe in "abcd"),
        *(row(probe, "random", float(seed), seed=seed) for probe in "ab" for seed in (0, 1)),
        *(row(probe, "random", 1.0, seed=seed) for probe in "cd" for seed in (0, 1)),
    ]
    summary = summarise_causal(rows)
    by_masking = {entry["masked"]: entry for entry in summary["overall"]}
    assert [by_masking[name]["correct"] for name in ("unmasked", "selected", "random")] == [1.0, 0.0, 0.75]
    assert by_masking["selected"]["change"]["mean"] == -1.0
    assert by_masking["random"]["low"] <= 0.75 <= by_masking["random"]["high"]
    assert "change" not in by_masking["unmasked"]
    assert by_masking["random"]["probes"] == summary["probes"] == 4
    json.dumps(summary, allow_nan=False)
    with pytest.raises(DataError, match="no rows"):
        summarise_causal([])


@pytest.mark.parametrize("how", ["choices", "generate"])
def test_a_question_without_choices_is_not_answered_by_chance(how: str) -> None:
    model = tiny("llama")
    asked = [*probes(1, ()), *probes(1)] if how == "generate" else probes(1)
    rows = list(causal_rows(model.model, processor(model), asked, HEADS, answering=how, random_seeds=1))
    assert {one.chance for one in rows} == ({0.0, 0.5} if how == "generate" else {0.5})


def test_the_table_says_so_above_where_a_model_does_not_answer() -> None:
    def summary(*right: float, chance: float = 0.25, task: str = "image") -> dict[str, Any]:
        return summarise_causal([
            row(str(number), masked, correct, chance=chance, task=task)
            for number, one in enumerate(right)
            for masked, correct in (("unmasked", one), ("selected", 1.0))
        ])  # fmt: skip

    for given, shown in (
        (summary(1, 0, 0, 0), "image: 25.0 % right unmasked, guessing gives 25.0 %"),
        (summary(0, 0, task="text", chance=0.0), "text: 0.0 % right unmasked, guessing gives 0.0 %"),
    ):
        (entry, masked) = given["overall"]
        assert (entry["above_chance"], masked["above_chance"]) == (False, True)
        title, table = causal_table(given).markdown().split("| task |", 1)
        assert f"The model does not answer ({shown}): masking has nothing to take away." in title
        assert "nothing" not in table
    right = summary(1, 1, 0, 0)
    assert right["overall"][0]["chance"] == 0.25
    assert right["overall"][0]["above_chance"]
    assert "does not answer" not in causal_table(right).markdown()


def test_tables_and_plots_show_lengths_and_depths(tmp_path: Path) -> None:
    rows = [
        row(f"{length}-{depth}-{masked}", masked, float(masked == "unmasked"), context_length=length, depth=depth)
        for length in (512, 1024)
        for depth in (0.0, 0.5, 1.0)
        for masked in ("unmasked", "selected")
    ]
    summary = summarise_causal(rows)
    assert {entry["context_length"] for entry in summary["by_length"]} == {512, 1024}
    assert {entry["depth"] for entry in summary["by_depth"]} == {0.0, 0.5, 1.0}
    title, _, columns, _, unmasked, selected = causal_table(summary).markdown().splitlines()
    assert title.startswith("Causal test on 12 probes")
    assert columns.startswith("| task | masked | phase | heads | correct |")
    assert "| 100.0 (100–100) |  |" in unmasked
    assert "| selected | all |" in selected
    plot_causal(summary, tmp_path / "causal.png")
    assert (tmp_path / "causal.png").stat().st_size > 5000
    with pytest.raises(DataError, match="saved as"):
        plot_causal(summary, tmp_path / "causal.txt")
    with pytest.raises(DataError, match="can't be written"):
        save_rows([], tmp_path / "nowhere" / "rows.jsonl")
