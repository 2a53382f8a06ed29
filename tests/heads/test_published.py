"""The shipped scores against the paper's figures, and how a model finds its heads among them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrh_retriever.errors import DataError, HeadSetError
from mmrh_retriever.files import read_text
from mmrh_retriever.heads import HeadId, HeadScores, HeadScoresTable, HeadSet, published
from mmrh_retriever.heads.published import ModelFacts, published_head_set, published_models, resolve_published
from mmrh_retriever.research.head_analysis import sparsity

QWEN3_8B = "Qwen/Qwen3-VL-8B-Instruct"
TASKS = ("text", "image", "rendered_text", "identical_image")
LENGTHS = (8192, 16384, 32768, 65536, 131072)
# Heads needed for half of the positive score mass, in % of all heads, mean over the five lengths:
# Figure 3 of arXiv 2605.27243.
FIGURE_3 = {
    "Qwen/Qwen2.5-VL-7B-Instruct": (5.8, 7.8, 6.4, 10.2),
    "Qwen/Qwen2.5-VL-32B-Instruct": (5.2, 8.3, 6.6, 7.9),
    "Qwen/Qwen3-VL-8B-Instruct": (5.6, 6.7, 7.2, 8.2),
    "Qwen/Qwen3-VL-32B-Instruct": (4.4, 6.0, 5.4, 5.3),
    "google/gemma-3-12b-it": (6.1, 6.6, 7.2, 8.0),
    "google/gemma-3-27b-it": (4.4, 5.0, 5.1, 8.0),
}
CELLS = [
    pytest.param(model, task, value, id=f"{model.split('/')[1]}-{task}")
    for model, row in FIGURE_3.items()
    for task, value in zip(TASKS, row, strict=True)
]
RELEASED = Path(__file__).parents[3] / "shared" / "published_heads"
needs_release = pytest.mark.skipif(
    not RELEASED.is_dir(), reason=f"the released scores are not at {RELEASED}; the shipped file is tested without"
)
MODELS = {facts.name: scores for facts, scores in published_models().items()}


@pytest.fixture(scope="module")
def released_tables():
    return {table.model_id: table for table in map(HeadScoresTable.load, sorted(RELEASED.glob("*.json")))}


def mean_sparsity(table, task):
    # As given: the paper's figure counts the impossible scores of Qwen2.5-VL-7B in.
    return 100 * np.mean([sparsity(table.at(task, length).as_given()) for length in LENGTHS])


@pytest.mark.parametrize(("model", "task", "value"), CELLS)
def test_figure_3_from_the_shipped_file(model, task, value):
    assert mean_sparsity(MODELS[model], task) == pytest.approx(value, abs=0.15)


@needs_release
@pytest.mark.parametrize(("model", "task", "value"), CELLS)
def test_figure_3_from_the_release(released_tables, model, task, value):
    assert mean_sparsity(released_tables[model], task) == pytest.approx(value, abs=0.15)


@needs_release
def test_shipped_scores_are_the_released_ones(released_tables):
    assert released_tables.keys() == MODELS.keys()
    for model_id, released in released_tables.items():
        shipped = MODELS[model_id]
        assert list(shipped) == list(released)
        for condition, scores in released.items():
            ours, theirs = shipped[condition].as_given(), scores.as_given()
            up = theirs >= 0
            np.testing.assert_array_equal(ours[up], theirs[up])
            np.testing.assert_allclose(ours[~up], theirs[~up], atol=0.00051)
            assert shipped[condition].invalid_heads == scores.invalid_heads


@needs_release
def test_condensing_reproduces_the_shipped_bytes(tmp_path, monkeypatch, capsys):
    condense_heads = pytest.importorskip("tools.condense_heads", reason="run from the repository root")
    output = tmp_path / "published_heads.json.gz"
    monkeypatch.setattr("sys.argv", ["condense_heads", str(RELEASED), str(output)])
    assert condense_heads.main() == 0
    assert "6 models" in capsys.readouterr().out
    # Packed bytes depend on the zlib at hand, the content does not.
    assert read_text(output, what="copy") == read_text(condense_heads.DEFAULT_OUTPUT, what="shipped file")


class TestShippedFile:
    def test_every_model_has_every_condition(self):
        assert list(MODELS) == list(FIGURE_3)
        for facts, scores in published_models().items():
            assert set(scores) == {(task, n) for task in TASKS for n in LENGTHS}
            assert (scores.n_layers, scores.n_heads) == (facts.n_layers, facts.n_heads)
            assert "2605.27243" in scores.first.source

    def test_the_only_impossible_scores(self):
        broken = {name: scores.invalid_heads for name, scores in MODELS.items() if scores.invalid_heads}
        assert list(broken) == ["Qwen/Qwen2.5-VL-7B-Instruct"]
        heads = broken["Qwen/Qwen2.5-VL-7B-Instruct"]
        assert heads == (HeadId(0, 10), *(HeadId(27, head) for head in (7, 10, 11, 12, 13)))
        scores = MODELS["Qwen/Qwen2.5-VL-7B-Instruct"].at("rendered_text", 16384)
        assert np.isnan(scores[HeadId(27, 7)])
        assert dict(scores.invalid)[HeadId(27, 7)] == pytest.approx(2.28125)
        assert scores.as_given().max() == pytest.approx(2.28125)

    def test_is_small(self):
        packaged = Path(published.__file__).parents[1] / "data" / "published_heads.json.gz"
        assert packaged.stat().st_size < 400_000

    def test_gemma_selects_global_layers_only(self):
        assert MODELS["google/gemma-3-12b-it"].selectable_layers == (5, 11, 17, 23, 29, 35, 41, 47)
        assert len(MODELS["google/gemma-3-27b-it"].selectable_layers) == 10
        assert MODELS[QWEN3_8B].selectable_layers is None

    def test_malformed_file(self, tmp_path):
        entry = {
            "model": "m",
            "model_type": "t",
            "hidden_size": 8,
            "n_layers": 1,
            "n_heads": 2,
            "selectable_layers": None,
            "scores": {"text": {"8": [[50, 100]]}},
        }
        content = {"format": "mmrh-published-heads", "version": 1, "source": "s", "note": "", "scale": 100}
        path = tmp_path / "heads.json"
        path.write_text(json.dumps(content | {"models": [entry]}))
        (scores,) = published.read_published(path).values()
        assert scores["text", 8].values.tolist() == [[0.5, 1.0]]
        path.write_text(json.dumps(content | {"models": [entry | {"n_layers": 2}]}))
        with pytest.raises(HeadSetError, match=r"m: scores\.text\.8 has 1 rows.*Expected 2 layers"):
            published.read_published(path)
        path.write_text(json.dumps(content | {"models": []}))
        with pytest.raises(DataError, match="models"):
            published.read_published(path)


class TestPublishedHeadSet:
    def test_the_papers_set(self):
        heads = published_head_set(QWEN3_8B)
        assert len(heads) == 112
        assert heads.tasks == TASKS
        assert (heads.model_id, heads.context_length) == (QWEN3_8B, 131072)
        assert "2605.27243" in heads.source
        heads.validate_for(36, 32, model_id=QWEN3_8B)
        assert len(published_head_set(QWEN3_8B, tasks=["text"])) == 58

    def test_order_is_by_the_best_task(self):
        heads = published_head_set(QWEN3_8B)
        table = MODELS[QWEN3_8B]
        chosen = {task: HeadSet.top(table.at(task, 131072)) for task in table.tasks}
        best = [max(table.at(task, 131072)[head] for task in table.tasks if head in chosen[task]) for head in heads]
        assert best == sorted(best, reverse=True)
        assert list(heads.scores) == best

    @pytest.mark.parametrize(
        ("model", "count"),
        [
            ("Qwen/Qwen2.5-VL-7B-Instruct", 97),  # 99 before its broken heads are left out
            ("Qwen/Qwen2.5-VL-32B-Instruct", 246),
            ("Qwen/Qwen3-VL-32B-Instruct", 324),
            ("google/gemma-3-12b-it", 67),
            ("google/gemma-3-27b-it", 163),
        ],
    )
    def test_other_models(self, model, count):
        heads = published_head_set(model)
        assert len(heads) == count
        table = MODELS[model]
        assert not set(heads) & set(table.invalid_heads)
        heads.validate_for(table.n_layers, table.n_heads, table.selectable_layers, model)

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("length", LENGTHS)
    def test_every_length_gives_controls(self, model, length):
        heads = published_head_set(model, length)
        per_task = -(-len(HeadSet.all_heads(heads.n_layers, heads.n_heads)) // 20)
        assert per_task <= len(heads) <= 4 * per_task
        assert len(heads.random_like(seed=1)) == len(heads)

    def test_depth_budget(self):
        heads = published_head_set(QWEN3_8B, max_layer=20)
        assert heads.deepest_layer <= 20
        assert len(heads) >= 58
        assert all(score > 0 for score in heads.scores)

    def test_what_is_not_there(self):
        with pytest.raises(HeadSetError, match=r"(?s)gemma-3-27b-it.*mmrh detect OpenGVLab/InternVL3-8B"):
            published_head_set("OpenGVLab/InternVL3-8B")
        with pytest.raises(HeadSetError, match="8192, 16384"):
            published_head_set(QWEN3_8B, 4096)
        with pytest.raises(HeadSetError, match="'video'"):
            published_head_set(QWEN3_8B, tasks=["video"])


def table_of(model):
    return HeadScoresTable([HeadScores(np.zeros((4, 2), dtype=np.float32), model, "text", 8)])


def facts_of(name, model_type, n_layers, n_heads, hidden_size):
    return ModelFacts(name, model_type, n_layers, n_heads, hidden_size, tuple(range(n_layers)))


TWINS = {
    facts_of(f"org/{name}", "vlm", 4, 2, hidden): table_of(f"org/{name}")
    for name, hidden in (("Twin-A", 64), ("Twin-B", 64), ("Twin-Wide", 128))
}


class TestResolve:
    @pytest.mark.parametrize("name", [QWEN3_8B, "qwen/qwen3-vl-8b-instruct", "Qwen3-VL-8B-Instruct"])
    def test_id_and_name(self, name):
        match = resolve_published(name)
        assert (match.model_id, match.how, match.note) == (QWEN3_8B, "id", "")
        assert resolve_published(facts_of(name, "qwen3_vl_text", 36, 32, 4096)).how == "id"

    @pytest.mark.parametrize(
        ("name", "model"),
        [
            ("unsloth/Qwen3-VL-8B-Instruct-bnb-4bit", QWEN3_8B),
            ("/models/Qwen3-VL-8B-Instruct/", QWEN3_8B),
            ("cache/models--Qwen--Qwen3-VL-8B-Instruct/snapshots/0c351d", QWEN3_8B),
            ("unsloth/gemma-3-27b-it-GGUF", "google/gemma-3-27b-it"),
            ("RedHatAI/Qwen2.5-VL-7B-Instruct-quantized.w8a8", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ],
    )
    def test_copies_by_name(self, name, model):
        match = resolve_published(name)
        assert (match.model_id, match.how) == (model, "name")
        assert "bears its name" in match.note
        assert model in match.note

    def test_by_shape(self):
        match = resolve_published(facts_of("./my-finetune", "qwen3_vl", 36, 32, 4096))
        assert (match.model_id, match.how) == (QWEN3_8B, "shape")
        assert "same family and size" in match.note
        assert "mmrh detect ./my-finetune" in match.note

    @pytest.mark.parametrize("facts", published_models(), ids=MODELS)
    def test_every_published_shape_is_recognised(self, facts):
        assert resolve_published(replace(facts, name="folder")).model_id == facts.name

    def test_shape_without_family_is_no_evidence(self):
        with pytest.raises(HeadSetError, match=r"published for meta/Llama \(x, 36 layers, 32 heads"):
            resolve_published(facts_of("meta/Llama", "x", 36, 32, 4096))
        with pytest.raises(HeadSetError, match="No heads are published"):
            resolve_published(facts_of("Qwen/Qwen3-8B", "qwen3", 36, 32, 4096))

    def test_a_name_that_its_configuration_contradicts(self):
        with pytest.raises(HeadSetError, match=r"named like Qwen/Qwen3-VL-8B-Instruct, but is.* 4 layers"):
            resolve_published(facts_of("tiny/Qwen3-VL-8B-Instruct", "qwen3_vl", 4, 4, 64))
        with pytest.raises(HeadSetError, match=r"hidden size 64"):
            resolve_published(facts_of(QWEN3_8B, "qwen3_vl", 36, 32, 64))

    def test_a_misleading_name_yields_to_the_configuration(self):
        match = resolve_published(facts_of("x/gemma-3-12b-it-to-Qwen3", "qwen3_vl", 36, 32, 4096))
        assert (match.model_id, match.how) == (QWEN3_8B, "shape")

    def test_equal_shapes_fall_back_to_the_name(self, monkeypatch):
        monkeypatch.setattr(published, "published_models", lambda: TWINS)
        match = resolve_published(facts_of("me/twin_b-4bit", "vlm", 4, 2, 64))
        assert (match.model_id, match.how) == ("org/Twin-B", "name")
        with pytest.raises(HeadSetError, match=r"fits org/Twin-A and org/Twin-B alike.*mmrh detect me/x"):
            resolve_published(facts_of("me/x", "vlm", 4, 2, 64))
        assert resolve_published(facts_of("me/x", "vlm", 4, 2, 128)).model_id == "org/Twin-Wide"

    def test_two_names_in_one(self, monkeypatch):
        monkeypatch.setattr(published, "published_models", lambda: TWINS)
        with pytest.raises(HeadSetError, match=r"no configuration given.*alike"):
            resolve_published("me/twin-a-twin-b")
