"""The command line: results on stdout, messages on stderr, exit codes 0, 1 and 2."""

from __future__ import annotations

import json
from pathlib import Path

import pymupdf
import pytest

from mmrh_retriever import HeadId, HeadSet, Page, PromptOptions, Reranker, RerankSettings, read_pdf
from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.model.loading import BUNDLED_FOLDER, HEADS_FILE
from tests.cli.conftest import Mmrh
from tests.factories import page_image

QUESTION = "How did revenue change?"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for seed in range(3):
        page_image(seed).save(folder / f"page{seed}.png")
    page_image(8, (120, 160)).save(folder / "scan.pdf", save_all=True, append_images=[page_image(9, (120, 160))])
    return sorted(folder.iterdir())


def test_rank_gives_one_json_object_per_line(mmrh: Mmrh, model: Path, files: list[Path], tmp_path: Path) -> None:
    done = mmrh("rank", *files, QUESTION, "--model", model, "--json", "--top-n", 4, "--heatmap", tmp_path / "maps")
    assert done.code == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert all(list(row) == ["rank", "document", "page", "score"] for row in rows)
    assert {row["document"] for row in rows} <= {file.name for file in files}
    assert all(row["page"] >= 1 for row in rows)
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len(list((tmp_path / "maps").glob("*.png"))) == 4
    assert "bundled" not in done.stderr


def test_rank_writes_a_report_and_keeps_pages_for_the_next_question(
    mmrh: Mmrh, model: Path, files: list[Path], tmp_path: Path
) -> None:
    report, store = tmp_path / "new" / "report.html", tmp_path / "store"
    plain = mmrh("rank", *files, QUESTION, "--model", model, "--json", "--top-n", 9)
    first = mmrh("rank", *files, QUESTION, "--model", model, "--json", "--top-n", 9, "--store", store)
    kept = {path: path.stat().st_ino for path in store.iterdir()}
    again = mmrh(
        *("rank", *files, QUESTION, "--model", model, "--json", "--top-n", 9, "--store", store, "--report", report)
    )
    assert (plain.code, first.code, again.code) == (0, 0, 0), again.stderr
    assert len(kept) == len(plain.stdout.splitlines())
    assert {path: path.stat().st_ino for path in store.iterdir()} == kept, "nothing was encoded again"
    scores = [[json.loads(line)["score"] for line in done.stdout.splitlines()] for done in (plain, first, again)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert scores[0] == pytest.approx(scores[2], abs=1e-6)
    assert QUESTION in report.read_text()


def test_rank_prints_a_table_for_people(mmrh: Mmrh, model: Path, files: list[Path]) -> None:
    done = mmrh("rank", files[0], files[-1], QUESTION, "--model", model, "--heads", "all")
    assert done.code == 0, done.stderr
    assert QUESTION in done.stdout
    assert "scan.pdf" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rank", "only.pdf"], 2, "at least one file and the question"),
        (["rank", "a.pdf", QUESTION, "--top-n", "0"], 2, "--top-n"),
        (["rank", "a.pdf", QUESTION, "--model-args", "half"], 2, "expected KEY=VALUE"),
        (["rank", "a.pdf", QUESTION, "--json", "--markdown"], 2, "give one of --json and --markdown"),
        (["rank"], 2, "Missing argument"),
        (["heads", "Qwen3-VL-8B-Instruct", "--top", "0"], 2, "expected a share"),
        (["rank", "missing.pdf", QUESTION], 1, "missing.pdf"),
        (["rank", "x.pdf", QUESTION, "--model", "no/such-model"], 1, "Error"),
        (["heads", "blip-base"], 1, "mmrh detect"),
    ],
)
def test_exit_codes(mmrh: Mmrh, model: Path, arguments: list[str], code: int, message: str) -> None:
    more = ["--model", model] if arguments[-1] == QUESTION and code == 1 else []
    done = mmrh(*arguments, *more)
    assert done.code == code, done.stderr
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_where_the_question_belongs(mmrh: Mmrh, files: list[Path]) -> None:
    done = mmrh("rank", files[0], files[1])
    assert done.code == 2
    assert "must be the question" in done.stderr


def test_heads_of_a_published_model(mmrh: Mmrh) -> None:
    done = mmrh("heads", "Qwen/Qwen3-VL-8B-Instruct", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == "Qwen/Qwen3-VL-8B-Instruct"


def test_heads_of_a_head_set(mmrh: Mmrh, tmp_path: Path) -> None:
    heads = HeadSet((HeadId(2, 1), HeadId(0, 3)), scores=(0.5, 0.25), model_id="some/model", n_layers=3, n_heads=4)
    heads.save(tmp_path / HEADS_FILE)
    for source in (tmp_path, tmp_path / HEADS_FILE):  # a model's folder, or the file
        done = mmrh("heads", source, "--json")
        assert done.code == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["heads"], report["scores"], report["by_layer"]) == (["2-1", "0-3"], [0.5, 0.25], [1, 0, 1])
    shown = mmrh("heads", tmp_path)
    assert "some/model: 2 heads of 3 x 4" in shown.stdout
    assert "0.250" in shown.stdout
    for option in ("--plot", "--compare"):
        refused = mmrh("heads", tmp_path, option, tmp_path / "x.png")
        assert refused.code == 1
        assert "give a scores file" in refused.stderr


def test_heads_of_the_bundled_model(mmrh: Mmrh) -> None:
    if not (BUNDLED_FOLDER / HEADS_FILE).is_file():
        pytest.skip("the bundled model is not installed")
    done = mmrh("heads", "bundled", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["size"] >= 1


def test_a_report_asks_the_question_once(
    mmrh: Mmrh, model: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages, regions, heat maps and the report all come from one asking; it was four of them before."""
    asked: list[list[int]] = []
    plain = Engine.ask
    monkeypatch.setattr(
        Engine, "ask", lambda *given, **more: asked.extend(one.ids for one in given[2]) or plain(*given, **more)
    )
    document = tmp_path / "document.pdf"
    made = pymupdf.open()
    for text in ("revenue grew", "emissions fell"):
        made.new_page(width=200, height=300).insert_text((20, 50), text, fontsize=16)
    made.save(document)
    report = tmp_path / "report.html"
    done = mmrh(
        *("rank", document, QUESTION, "--model", model, "--report", report, "--heatmap", tmp_path / "maps", "--json")
    )
    assert done.code == 0, done.stderr
    assert len(asked) == 2, "the null question and the question, once each"
    assert asked[0] != asked[1]
    assert len(done.stdout.splitlines()) == len(list((tmp_path / "maps").iterdir())) == 2
    page = report.read_text()
    assert page.count("<img") > 4  # pages, thumbnails, and the question's tokens
    asked.clear()
    boxes = mmrh("rank", document, QUESTION, "--model", model, "--report", report, "--regions", "--json")
    assert len(asked) == 2
    assert {json.loads(line)["kind"] for line in boxes.stdout.splitlines()}
    alone = mmrh("rank", document, QUESTION, "--model", model, "--regions", "--json")
    scores = [[json.loads(line)["score"] for line in run.stdout.splitlines()] for run in (boxes, alone)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_regions_need_a_layout(mmrh: Mmrh, model: Path, files: list[Path], tmp_path: Path) -> None:
    for more in ([], ["--report", tmp_path / "report.html"]):
        done = mmrh("rank", files[0], QUESTION, "--model", model, "--regions", *more)
        assert (done.code, done.stdout) == (1, "")
        assert "has regions to rank" in done.stderr


def test_options_reach_the_reranker(
    mmrh: Mmrh, model: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RerankSettings] = []
    plain = Reranker.from_pretrained.__func__

    def load(cls: type[Reranker], *given: object, settings: RerankSettings, **more: object) -> Reranker:
        seen.append(settings)
        return plain(cls, *given, settings=settings.model_copy(update={"model_kwargs": {}}), **more)

    monkeypatch.setattr(Reranker, "from_pretrained", classmethod(load))
    given = ["rank", files[0], files[1], QUESTION, "--model", model]
    done = mmrh(
        *(*given, "--token-budget", 900, "--final-round", 0, "--together", "--no-calibration", "--attention", "eager"),
        *("--max-pixels", 20000, "--model-args", "low_cpu_mem_usage=true", "--model-args", "subfolder=some/where"),
    )
    assert done.code == 0, done.stderr
    old = mmrh(*given, "--final-heat", 4)
    assert (old.code, old.stdout) == (0, mmrh(*given, "--final-round", 4).stdout)
    assert "DeprecationWarning: --final-heat is called --final-round now." in old.stderr
    first, second, third = seen
    assert first == RerankSettings(
        model=str(model), attn_implementation="eager", max_pixels=20000, token_budget=900, final_round=0,
        independent=False, calibrate=False, model_kwargs={"low_cpu_mem_usage": True, "subfolder": "some/where"},
    )  # fmt: skip
    assert second == third == RerankSettings(model=str(model), final_round=4)
    assert "--final-heat" not in mmrh("rank", "--help").stdout


def test_a_prompt_and_windows_by_count(mmrh: Mmrh, model: Path, files: list[Path], tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.json"
    prompt.write_text('{"page_label": "Sheet {number}: "}')
    given = ("rank", *files, QUESTION, "--model", model, "--json", "--top-n", 9)
    done = mmrh(*given, "--prompt", prompt, "--window-pages", 2, "--final-round", 0)
    assert done.code == 0, done.stderr
    options = PromptOptions(page_label="Sheet {number}: ")
    settings = RerankSettings(model=str(model), window_pages=2, final_round=0, options=options)
    pages = [Page(image=file) for file in files if file.suffix == ".png"] + read_pdf(files[-1])
    ranked = Reranker.from_pretrained(settings=settings).rank(QUESTION, pages)
    assert [json.loads(line)["score"] for line in done.stdout.splitlines()] == pytest.approx(
        [scored.score for scored in ranked], rel=1e-6
    )
    assert done.stdout != mmrh(*given).stdout


def test_markdown(mmrh: Mmrh, model: Path, files: list[Path]) -> None:
    done = mmrh("rank", files[0], files[1], QUESTION, "--model", model, "--markdown")
    assert done.stdout.startswith(
        f"{QUESTION}\n\n| rank | document | page | score |\n| --- | --- | ---: | ---: |\n| 1 |"
    )
