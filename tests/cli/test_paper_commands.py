"""The paper's table: its documented commands, on small files in MMDocIR's published form."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pymupdf
import pytest

from tests import factories
from tests.cli.conftest import Done, Mmrh
from tests.evaluation.official_files import write_official

pytest.importorskip("pyarrow", reason="pip install pyarrow to read parquet files")

ROOT = Path(__file__).parents[2]
MODEL = "Qwen/Qwen3-VL-8B-Instruct"
DOCUMENTED = [("docs/evaluation.md", ["page", "layout"])]


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the commands' files stand, about two generated documents; it is the working directory."""
    lines = []
    for name, domain in (("a.v1.pdf", "News"), ("b.pdf", "Laws")):
        made = pymupdf.open()
        for word in ("revenue grew", "emissions fell", "water was used"):
            page = made.new_page(width=200, height=300)
            page.insert_text((20, 50), word, fontsize=16)
            page.insert_text((20, 200), f"{word} again", fontsize=16)
        made.save(tmp_path / name)
        layout = [{"page": 1, "page_size": [200.0, 300.0], "bbox": [15, 35, 150, 60]}]
        lines.append({"doc_name": name, "domain": domain, "questions": [
            {"Q": "Which emissions? ", "A": "", "page_id": [1], "type": "multimodal-t", "layout_mapping": layout},
            {"Q": "What grew?", "A": "", "page_id": [0, 1], "type": "['Table', 'Chart']", "layout_mapping": layout},
        ]})  # fmt: skip
    write_official(tmp_path / "mmdocir", lines, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL of random weights as a folder, with its heads beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny = factories.tiny("qwen3_vl")
    for part in (tiny.model, tiny.tokenizer, tiny.image_processor):
        part.save_pretrained(folder)
    heads = {"format": "mmrh-head-set", "version": 1, "heads": ["1-0", "2-3", "0-2"], "n_layers": 3, "n_heads": 4}
    (folder / "mmrh_heads.json").write_text(json.dumps(heads))
    return folder


def commands_of(file: str) -> list[list[str]]:
    """The arguments of the commands that evaluate the paper's model, as a document has them."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("mmrh evaluate mmdocir")]
    return [arguments[1:] for arguments in found if MODEL in arguments and "--preset" in arguments]


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


@pytest.mark.parametrize(("file", "levels"), DOCUMENTED)
def test_the_documented_commands_run_up_to_the_weights(
    mmrh: Mmrh, official: Path, monkeypatch: pytest.MonkeyPatch, file: str, levels: list[str]
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    class WeightsAsked(Exception):  # noqa: N818
        pass

    def load_model(model: str, **options: Any) -> Any:
        asked.append((model, options))
        raise WeightsAsked

    monkeypatch.setattr("mmrh_retriever.ranking.reranker.load_model", load_model)
    found = commands_of(file)
    assert len(found) == len(levels)
    for arguments, level in zip(found, levels, strict=True):
        plan = mmrh(*arguments, "--dry-run")
        assert plan.code == 0, plan.stderr
        content = json.loads(plan.stdout)
        assert (content["level"], content["heads"]) == (level, {"selected": 112})
        ranker = content["rankers"]["selected"]
        assert ranker["window_pages"] == (200 if level == "page" else 50)
        assert (ranker["final_round"], ranker["resize_first"], ranker["independent"]) == (0, True, False)
        assert (ranker["options"]["first_number"], ranker["options"]["strip_question"]) == (0, False)
        assert content["dataset"]["layout_images"] == (level == "layout")
        assert not (official / option(arguments, "--out")).exists()
        with pytest.raises(WeightsAsked):
            mmrh(*arguments)
        assert (official / option(arguments, "--out") / "settings.json").is_file()
    assert asked == [(MODEL, {})] * len(levels)


@pytest.mark.parametrize(("file", "levels"), DOCUMENTED)
def test_the_documented_commands_run_to_the_end_with_a_tiny_model(
    mmrh: Mmrh, official: Path, tiny_model: Path, file: str, levels: list[str]
) -> None:
    for arguments, level in zip(commands_of(file), levels, strict=True):
        done = mmrh(*[str(tiny_model) if item == MODEL else item for item in arguments], "--json")
        assert done.code == 0, done.stderr
        first, *_ = map(json.loads, done.stdout.splitlines())
        assert (first["level"], first["questions"], first["failed"]) == (level, 4, [])
        assert set(first["by_domain"]) == {"News", "Laws"}
        assert set(first["by_type"]) == {"multimodal-t", "Table", "Chart"}
        assert first["micro"]["recall@10" if level == "layout" else "recall@3"] > 0
        assert (official / option(arguments, "--out") / "tables.md").read_text().startswith(level.capitalize())


def evaluated(mmrh: Mmrh, *more: object) -> Done:
    files = [f"mmdocir/MMDocIR_{name}" for name in ("annotations.jsonl", "pages.parquet", "layouts.parquet")]
    return mmrh("evaluate", "mmdocir", "--annotations", files[0], "--pages", files[1], "--layouts", files[2],
                "--out", "out", *more)  # fmt: skip


def test_options_beside_the_preset_take_precedence(mmrh: Mmrh, official: Path) -> None:
    (official / "prompt.json").write_text('{"instruction": "Look.", "page_label": "P{number}"}')
    done = evaluated(mmrh, "--preset", "paper", "--level", "layout", "--region-method", "page", "--window-pages", 7,
                     "--final-round", 3, "--question-weights", "frequency", "--prompt", "prompt.json", "--model", MODEL,
                     "--dry-run")  # fmt: skip
    assert done.code == 0, done.stderr
    plan = json.loads(done.stdout)
    ranker = plan["rankers"]["selected"]
    assert (ranker["window_pages"], ranker["final_round"], ranker["region_method"]) == (7, 3, "page")
    assert ranker["question_weights"] == "frequency"
    assert ranker["options"] | {"instruction": "Look.", "page_label": "P{number}"} == ranker["options"]
    assert ranker["options"]["question_label"] == "\n\nQuestion: "
    assert plan["dataset"]["layout_images"] is False


def test_without_the_preset_nothing_changes(mmrh: Mmrh, official: Path) -> None:
    plan = json.loads(evaluated(mmrh, "--model", MODEL, "--level", "layout", "--dry-run").stdout)
    ranker = plan["rankers"]["selected"]
    assert (ranker["window_pages"], ranker["token_budget"], ranker["final_round"]) == (None, None, 10)
    assert (ranker["region_method"], ranker["resize_first"]) == ("page", False)
    assert ranker["question_weights"] == "auto"


def test_another_prompt_is_another_run(mmrh: Mmrh, official: Path, tiny_model: Path) -> None:
    (official / "prompt.json").write_text('{"instruction": "Look."}')
    assert evaluated(mmrh, "--model", tiny_model).code == 0
    done = evaluated(mmrh, "--model", tiny_model, "--prompt", "prompt.json", "--resume")
    assert done.code == 1
    assert "rankers.selected.options.instruction" in done.stderr
    (official / "prompt.json").write_text('{"instructon": "Look."}')
    wrong = evaluated(mmrh, "--model", tiny_model, "--prompt", "prompt.json", "--dry-run")
    assert (wrong.code, wrong.stdout) == (1, "")
    assert "prompt.json" in wrong.stderr
    assert "instructon: Extra inputs are not permitted" in wrong.stderr


def test_files_of_another_edition_stop_a_dry_run(mmrh: Mmrh, official: Path) -> None:
    import pyarrow.parquet as parquet

    path = official / "mmdocir" / "MMDocIR_layouts.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.slice(1), path)
    done = evaluated(mmrh, "--model", MODEL, "--dry-run")
    assert (done.code, done.stdout) == (1, "")
    assert "MMDocIR_layouts.parquet" in done.stderr
    assert "different editions" in done.stderr


def test_a_run_in_which_every_document_fails_says_so(mmrh: Mmrh, official: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path = official / "mmdocir" / "MMDocIR_pages.parquet"
    rows = parquet.read_table(path).to_pylist()
    parquet.write_table(arrow.Table.from_pylist([{**row, "image_binary": b"no"} for row in rows]), path)
    done = evaluated(mmrh, "--baseline", "random", "--baselines-only")
    assert (done.code, done.stdout) == (1, "")
    assert "random has no result for any of the 2 documents. a.v1.pdf: " in done.stderr
    assert "not an image" in done.stderr
    parquet.write_table(
        arrow.Table.from_pylist([*rows[:3], *({**row, "image_binary": b"no"} for row in rows[3:])]), path
    )
    again = evaluated(mmrh, "--baseline", "random", "--baselines-only", "--resume", "--json")
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["failed"] == ["b.pdf"]
