"""``mmrh evaluate mmdocir``: output, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pymupdf
import pytest

from mmrh_retriever import Reranker, RerankSettings
from mmrh_retriever.evaluation import run_settings
from tests import factories
from tests.cli.conftest import Mmrh
from tests.tiny_rerankers import save_cross_encoder, save_image_embedder


@pytest.fixture
def run(mmrh: Mmrh) -> Mmrh:
    return lambda *arguments: mmrh("evaluate", "mmdocir", *arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = []
    for number, (name, domain) in enumerate([("a.pdf", "News"), ("b.pdf", "Law")]):
        made = pymupdf.open()
        for word in ("revenue grew", "emissions fell"):
            made.new_page(width=200, height=300).insert_text((20, 50), word, fontsize=16)
        made.save(tmp_path / name)
        layout = [{"page": 1, "page_size": [200, 300], "bbox": [15, 35, 150, 60]}]
        question = {"Q": "Which emissions?", "A": "", "page_id": [1], "type": "['Table']", "layout_mapping": layout}
        rows = [2 * number, 2 * number + 1]
        lines.append({"doc_name": name, "domain": domain, "page_indices": rows, "layout_indices": rows,
                      "questions": [question]})  # fmt: skip
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def pdfs(folder: Path) -> list[object]:
    return ["--annotations", folder / "annotations.jsonl", "--documents", folder, "--out", folder / "out"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[RerankSettings]:
    """Loads a tiny model whatever is asked, and notes the settings."""
    made = factories.tiny("qwen3_vl")
    asked: list[RerankSettings] = []

    def load(*, heads: str, settings: RerankSettings) -> Reranker:
        asked.append(settings)
        heads = "all" if heads == "published" else heads
        return Reranker(made.model, (made.tokenizer, made.image_processor), heads=heads)

    monkeypatch.setattr(Reranker, "from_pretrained", load)
    return asked


def test_json_has_the_agreed_keys_and_nothing_else_on_stdout(
    run: Mmrh, pdfs: list[object], tiny: list[RerankSettings]
) -> None:
    done = run(*pdfs, "--model", "some/model", "--json")
    assert done.code == 0, done.stderr
    (line,) = done.stdout.splitlines()
    content = json.loads(line)
    assert content["level"] == "page"
    assert content["questions"] == 2
    assert set(content["by_domain"]) == {"News", "Law"}
    for group in (content["micro"], content["macro"], content["by_domain"]["Law"]):
        assert {"recall@1", "recall@3", "recall@5", "recall@10", "hit@1", "hit@10", "mrr", "ndcg@5"} < set(group)
    assert content["ranker"] == "selected"
    assert tiny[0].model == "some/model"


def test_baselines_run_beside_the_model(
    run: Mmrh, mmrh: Mmrh, pdfs: list[object], tiny: list[RerankSettings], folder: Path
) -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib for plots")
    done = run(*pdfs, "--model", "m", "--baseline", "bm25", "--baseline", "random", "--baseline", "all-heads", "--json",
               "--plot", folder / "plot.png")  # fmt: skip
    assert done.code == 0, done.stderr
    found = {line["ranker"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(found) == ["selected", "all-heads", "bm25", "random"]
    assert found["bm25"]["micro"]["recall@1"] == 1
    assert found["selected"]["micro"] == found["all-heads"]["micro"]  # the tiny model's heads are all its heads
    assert len(tiny) == 1  # one model for both
    assert "BM25" in (folder / "out" / "tables.md").read_text()
    assert (folder / "plot.png").stat().st_size > 1000
    table = run(*pdfs, "--model", "m", "--baseline", "bm25", "--baseline", "all-heads", "--resume")
    assert table.code == 0, table.stderr
    assert "Page level: 2 questions about 2 documents" in table.stdout
    assert "points below BM25 in R@1" in table.stdout
    assert "Law" in table.stdout
    assert "…" not in table.stdout
    assert "\x1b" not in table.stdout
    again = mmrh("evaluate", "tables", folder / "out")
    assert again.stdout == table.stdout
    markdown = mmrh("evaluate", "tables", folder / "out", "--markdown")
    assert markdown.stdout == (folder / "out" / "tables.md").read_text()
    lines = mmrh("evaluate", "tables", folder / "out", "--json").stdout.splitlines()
    assert [json.loads(line)["ranker"] for line in lines] == ["selected", "all-heads", "bm25", "random"]


def test_tables_of_finished_runs(run: Mmrh, mmrh: Mmrh, pdfs: list[object], folder: Path) -> None:
    done = run(*pdfs, "--baseline", "random", "--baselines-only")
    assert done.code == 0, done.stderr
    former = mmrh("evaluate", "report", folder / "out")
    assert (former.code, former.stdout) == (0, done.stdout)
    assert "DeprecationWarning: mmrh evaluate report is called mmrh evaluate tables now." in former.stderr
    assert "report" not in mmrh("evaluate", "--help").stdout
    twice = mmrh("evaluate", "tables", folder / "out", folder / "out", "--markdown").stdout
    assert twice.count("Page level: 2 questions") == 2
    missing = mmrh("evaluate", "tables", folder / "none")
    assert (missing.code, missing.stdout) == (1, "")
    assert "none/settings.json: no such file. Check the path of the settings file of a ranking evaluation" in (
        missing.stderr
    )


def test_former_names_of_options(run: Mmrh, pdfs: list[object], folder: Path) -> None:
    few = ("--baseline", "random", "--baselines-only", "--engine", "local", "--final-heat", 0)
    done = run(*pdfs, *few, "--dry-run")
    assert done.code == 0, done.stderr
    assert "DeprecationWarning: --engine is called --executor now." in done.stderr
    assert "DeprecationWarning: --final-heat is called --final-round now." in done.stderr
    help_text = run("--help").stdout
    assert "--executor" in help_text
    assert "--engine" not in help_text


def test_baselines_alone_load_no_model(run: Mmrh, pdfs: list[object], tiny: list[RerankSettings]) -> None:
    done = run(*pdfs, "--baseline", "random", "--baselines-only", "--seed", 4, "--limit", 1, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["questions"] == 1
    assert tiny == []


def test_the_bundled_model_is_announced_on_stderr(
    run: Mmrh, pdfs: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_settings, "model_path", lambda _: ("bundled", True))
    done = run(*pdfs, "--dry-run")
    assert done.code == 0, done.stderr
    assert "small bundled model" in done.stderr
    assert "it is joined with BM25 (hybrid)" in " ".join(done.stderr.split())
    assert json.loads(done.stdout)["rankers"]["selected"]["model"] == "bundled"


def test_layout_level(run: Mmrh, pdfs: list[object]) -> None:
    done = run(*pdfs, "--baseline", "bm25", "--baselines-only", "--level", "layout", "--json")
    assert done.code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["level"] == "layout"
    assert content["micro"]["recall@1"] > 0.5
    assert "coverage@10" in content["micro"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--documents", ".", "--pages", "x"],
        [],
        ["--documents", ".", "--layouts", "x"],
        ["--pages", "x", "--level", "layout"],
        ["--documents", ".", "--baselines-only"],
        ["--documents", ".", "--workers", "2"],
        ["--documents", ".", "--limit", "0"],
        ["--documents", ".", "--baseline", "tfidf"],
        ["--documents", ".", "--level", "word"],
        ["--documents", ".", "--json", "--markdown"],
    ],
)
def test_bad_arguments_exit_with_2(run: Mmrh, arguments: list[str]) -> None:
    done = run("--annotations", "a", "--out", "o", *arguments)
    assert done.code == 2, done.stderr
    assert done.stdout == ""


def test_failures_exit_with_1_and_a_message(run: Mmrh, pdfs: list[object], folder: Path) -> None:
    missing = run("--annotations", folder / "none.jsonl", "--documents", folder, "--out", folder / "out")
    assert missing.code == 1
    assert "no such file" in missing.stderr
    assert missing.stdout == ""
    (folder / "a.pdf").unlink()
    absent = run(*pdfs, "--baseline", "random", "--baselines-only")
    assert absent.code == 1
    assert "1 of 2 PDFs are missing: a.pdf" in absent.stderr
    allowed = run(*pdfs, "--baseline", "random", "--baselines-only", "--allow-missing", "--json")
    assert allowed.code == 0, allowed.stderr
    assert json.loads(allowed.stdout)["failed"] == ["a.pdf"]
    assert "a.pdf counts as zero" in allowed.stderr
    again = run(*pdfs, "--baseline", "random", "--baselines-only", "--allow-missing")
    assert again.code == 1
    assert "--resume" in again.stderr
    other = run(*pdfs, "--baseline", "random", "--baselines-only", "--allow-missing", "--resume", "--seed", 9)
    assert other.code == 1
    assert "rankers.random.seed: was 0, now 9" in other.stderr


def test_named_baselines(run: Mmrh, mmrh: Mmrh, pdfs: list[object], folder: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="pip install 'mmrh-retriever[rerankers]'")
    words, images = folder / "words", folder / "images"
    save_cross_encoder(words)
    save_image_embedder(images)
    given = (*pdfs, "--baselines-only", "--device", "cpu", "--json")
    named = ("--baseline", f"cross-encoder:{words}", "--baseline", f"embedding:{words}")
    done = run(*given, *named, "--baseline", "random")
    assert done.code == 0, done.stderr
    names = [f"cross-encoder:{words}", f"embedding:{words}", "random"]
    assert [json.loads(line)["ranker"] for line in done.stdout.splitlines()] == names
    shown = run(*given, "--baseline", f"embedding:{images}", "--baseline-input", "image", "--resume")
    assert shown.code == 0, shown.stderr
    assert [json.loads(line)["ranker"] for line in shown.stdout.splitlines()] == [
        f"embedding:{images} (images)",
        *names,
    ]
    settings = json.loads((folder / "out" / "settings.json").read_text())["settings"]["rankers"]
    assert settings[names[0]] == {
        "kind": "cross-encoder", "model": str(words), "dtype": None, "reads": "text", "own_code": False,
    }  # fmt: skip
    refused = run(*given, "--baseline", f"cross-encoder:{words}", "--baseline-input", "image", "--resume")
    assert refused.code == 1
    assert "reads text, no images" in refused.stderr
    wrong = run(*given, "--baseline", "cross-encoder:")
    assert wrong.code == 2
    assert (
        "is not one of images-only, all-heads, bm25, embedding, random, cross-encoder:NAME, embedding:NAME"
        in wrong.stderr
    )
