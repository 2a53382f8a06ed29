"""``mmrh evaluate mmdocir``: output, exit codes, and the paper's own command up to loading the weights."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image

from mmrh_retriever import Reranker, RerankSettings
from mmrh_retriever.evaluation import run_settings
from tests import factories
from tests.cli.conftest import Mmrh

ROOT = Path(__file__).parents[2]


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
        assert set(group) == {"recall@1", "recall@3", "recall@5", "mrr", "ndcg@3", "ndcg@5"}
    assert content["ranker"] == "selected"
    assert tiny[0].model == "some/model"


def test_baselines_run_beside_the_model(
    run: Mmrh, mmrh: Mmrh, pdfs: list[object], tiny: list[RerankSettings], folder: Path
) -> None:
    pytest.importorskip("bm25s", reason="pip install bm25s for the BM25 baseline")
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
    assert [json.loads(line)["ranker"] for line in lines] == ["selected", "all-heads", "bm25"]


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
    assert "It is for scans" in " ".join(done.stderr.split())
    assert json.loads(done.stdout)["rankers"]["selected"]["model"] == "bundled"


def test_layout_level(run: Mmrh, pdfs: list[object]) -> None:
    pytest.importorskip("bm25s", reason="pip install bm25s for the BM25 baseline")
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


@pytest.fixture
def official(folder: Path) -> list[object]:
    """The paper's own command, on small files in the official form."""
    arrow = pytest.importorskip("pyarrow", reason="pip install pyarrow to read parquet files")
    import pyarrow.parquet as parquet

    stream = io.BytesIO()
    Image.new("RGB", (40, 60)).save(stream, "JPEG")
    names = ["a.pdf", "a.pdf", "b.pdf", "b.pdf"]
    pages = [{"doc_name": name, "domain": "", "passage_id": "0", "image_path": "", "image_binary": stream.getvalue(),
              "ocr_text": "x", "vlm_text": "x"} for name in names]  # fmt: skip
    layouts = [{"doc_name": name, "domain": "", "type": "text", "layout_id": 0, "page_id": row % 2, "image_path": "",
                "image_binary": b"", "text": "x", "ocr_text": "", "vlm_text": "", "bbox": [0, 0, 9, 9],
                "page_size": [200.0, 300.0]} for row, name in enumerate(names)]  # fmt: skip
    parquet.write_table(arrow.Table.from_pylist(pages), folder / "MMDocIR_pages.parquet")
    parquet.write_table(arrow.Table.from_pylist(layouts), folder / "MMDocIR_layouts.parquet")
    return [
        "--annotations", folder / "annotations.jsonl", "--pages", folder / "MMDocIR_pages.parquet",
        "--layouts", folder / "MMDocIR_layouts.parquet", "--model", "Qwen/Qwen3-VL-8B-Instruct",
        "--heads", "published", "--baseline", "all-heads", "--token-budget", 131072, "--out", folder / "out",
    ]  # fmt: skip


@pytest.mark.parametrize("level", ["page", "layout"])
def test_the_papers_command_dry_run(run: Mmrh, official: list[object], level: str, folder: Path) -> None:
    done = run(*official, "--level", level, "--dtype", "bfloat16", "--dry-run")
    assert done.code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["heads"] == {"selected": 112}
    assert plan["level"] == level
    assert plan["rankers"]["selected"]["token_budget"] == 131072
    assert plan["rankers"]["all-heads"] == plan["rankers"]["selected"] | {"heads": "all"}
    assert not (folder / "out").exists()


def test_the_papers_command_up_to_the_weights(
    run: Mmrh, official: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    class WeightsAsked(Exception):  # noqa: N818
        pass

    def load_model(model: str, **options: Any) -> Any:
        asked.append((model, options))
        raise WeightsAsked

    monkeypatch.setattr("mmrh_retriever.ranking.reranker.load_model", load_model)
    with pytest.raises(WeightsAsked):
        run(*official, "--dtype", "bfloat16", "--attn-implementation", "sdpa")
    assert asked == [("Qwen/Qwen3-VL-8B-Instruct", {"dtype": "bfloat16", "attn_implementation": "sdpa"})]


def commands_of(file: str) -> list[list[str]]:
    """The arguments of the commands that evaluate the paper's model, as a document has them."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("mmrh evaluate mmdocir")]
    return [arguments[3:] for arguments in found if "Qwen/Qwen3-VL-8B-Instruct" in arguments]


@pytest.mark.parametrize(("file", "levels"), [("README.md", ["page", "layout"]), ("docs/evaluation.md", ["page"])])
def test_the_documented_commands_run_up_to_the_weights(
    run: Mmrh, official: list[object], folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, levels: list[str]
) -> None:
    """The paper's table, word for word, in a folder where the official files stand."""
    assert official
    (folder / "mmdocir").mkdir()
    for name in ("MMDocIR_pages.parquet", "MMDocIR_layouts.parquet"):
        (folder / name).rename(folder / "mmdocir" / name)
    (folder / "annotations.jsonl").rename(folder / "mmdocir" / "MMDocIR_annotations.jsonl")
    monkeypatch.chdir(folder)
    asked: list[str] = []

    class WeightsAsked(Exception):  # noqa: N818
        pass

    def load_model(model: str, **options: Any) -> Any:
        asked.append(model)
        raise WeightsAsked

    monkeypatch.setattr("mmrh_retriever.ranking.reranker.load_model", load_model)
    found = commands_of(file)
    assert len(found) == len(levels)
    for arguments, level in zip(found, levels, strict=True):
        plan = run(*arguments, "--dry-run")
        assert plan.code == 0, plan.stderr
        assert json.loads(plan.stdout)["level"] == level
        assert json.loads(plan.stdout)["heads"] == {"selected": 112}
        with pytest.raises(WeightsAsked):
            run(*arguments)
        assert (folder / arguments[arguments.index("--out") + 1] / "settings.json").is_file()
    assert asked == ["Qwen/Qwen3-VL-8B-Instruct"] * len(levels)
