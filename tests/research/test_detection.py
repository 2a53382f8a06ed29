"""Detection against the plain eager computation on the full prompt, and runs that are killed and resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmrh_retriever import HeadId, HeadScoresTable, HeadSet, Page, PromptOptions, Reranker, TokenSpan
from mmrh_retriever.detection import detect, detect_heads
from mmrh_retriever.errors import ContextOverflowError, DataError, PageError, QuestionError, SettingsError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import Prompter, PromptSegment
from mmrh_retriever.research.probes import TASKS, Evidence, Probe, ProbeBuilder, page_probes
from mmrh_retriever.research.probes.haystacks import Haystack
from mmrh_retriever.research.probes.prompts import ProbePrompt, ProbePrompter, token_counter
from tests.factories import TEXT_ONLY, Tiny, page_image, tiny
from tests.reference import eager_attentions

LENGTH = 1100


def processor(model: Tiny) -> object:
    return (model.tokenizer, model.image_processor)


def probes_for(model: Tiny, task: str, *, examples: int = 1, depths: int = 2, seed: int = 0) -> list[Probe]:
    prompter = Prompter(Backbone.of(model.model), model.tokenizer, model.image_processor)
    passages = Haystack.generated(1, passages=20, images=0).passages
    images = tuple(Page(image=page_image(number), doc_id="haystack", index=number) for number in range(6))
    haystack = Haystack(passages, () if model.name in TEXT_ONLY else images, "test")
    share = 0.0 if model.name in TEXT_ONLY else 0.4
    build = ProbeBuilder(token_counter(prompter), haystack, image_share=share, seed=seed)
    return list(build.build(task, LENGTH, examples=examples, depths=depths))


def expected_scores(model: Tiny, probe: Probe, prompt: ProbePrompt | None = None) -> np.ndarray:
    """``(layers, heads)`` by the definition: two plain full passes, everything kept."""
    prompter = ProbePrompter(Prompter(Backbone.of(model.model), model.tokenizer, model.image_processor), prompt)
    context = prompter.context(probe)
    prefix = prompter.prompter(probe).prefix_segment()
    found = []
    for question in (prompter.question_segments(probe), prompter.null_segments(probe)):
        segments = [prefix, *context.segments, *question]
        attention = eager_attentions(model, segments)  # (layers, heads, tokens, tokens)
        starts = np.cumsum([0, *map(len, segments)])
        parts = [
            (start + span.start, start + span.stop)
            for start, segment in zip(starts[1:], context.segments, strict=False)
            for span in segment.scored
        ]
        keys = [
            token
            for (first, stop), gold in zip(parts, context.evidence(probe), strict=True)
            for token in (range(first, stop) if gold else ())
        ]
        rows = [
            token
            for start, segment in zip(starts[1 + len(context.segments) :], question, strict=False)
            for span in segment.scored
            for token in range(start + span.start, start + span.stop)
        ]
        found.append(attention[:, :, rows][:, :, :, keys].double().sum(-1).mean(-1).numpy())
    return found[0] - found[1]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        *((name, "text") for name in ("qwen3_vl", "qwen2_5_vl", "gemma3", "mistral3", "llama", "qwen3")),
        *((name, task) for name in ("qwen3_vl", "gemma3", "smolvlm") for task in TASKS[1:]),
        ("internvl", "rendered_text"),
        *((name, task) for name in ("gemma4", "qwen3_5", "lfm2_vl") for task in ("text", "image")),
        ("llava_onevision", "image"),
    ],
)
def test_detection_equals_the_plain_computation(name: str, task: str) -> None:
    model = tiny(name)
    (probe,) = probes_for(model, task, depths=1)
    table = detect_heads(model.model, processor(model), [probe])
    backbone = Backbone.of(model.model)
    found = table.at(task, LENGTH).values[list(backbone.seam.modules)]
    expected = expected_scores(tiny(name), probe)
    measured = ~np.isnan(found)
    layers = np.array(list(backbone.seam.modules))[measured.all(axis=1)]
    assert tuple(layers) == backbone.global_layers
    difference = np.abs(found - expected)[measured].max()
    print(f"{name:16} {task:16} {difference:.1e} of {np.abs(expected).max():.1e}")
    assert np.abs(expected).max() > 1e-3
    assert difference < 1e-5


PAPER = ProbePrompt(PromptOptions(count_question_label=False), null_keeps_pictures=True)


@pytest.mark.parametrize(
    ("name", "task"), [("llama", "text"), *(("qwen3_vl", task) for task in TASKS[1:]), ("gemma3", "identical_image")]
)
def test_the_papers_preset_equals_the_plain_computation(name: str, task: str) -> None:
    model = tiny(name)
    (probe,) = probes_for(model, task, depths=1)
    found = detect(model.model, processor(model), [probe], preset="paper").probes[0].scores
    expected = expected_scores(tiny(name), probe, PAPER)
    measured = ~np.isnan(found)
    assert np.abs(found - expected)[measured].max() < 1e-5
    usual = detect_heads(model.model, processor(model), [probe]).at(task, LENGTH).values
    assert np.abs(found - usual)[measured].max() > 1e-4


def test_the_papers_question_has_no_label_that_looks_and_its_null_question_keeps_the_picture() -> None:
    model = tiny("qwen3_vl")
    prompter = ProbePrompter(
        Prompter(Backbone.of(model.model), model.tokenizer, model.image_processor), ProbePrompt.preset("paper")
    )

    def looking(segments: list[PromptSegment]) -> str:
        """The tokens that look; ``[image]`` for a picture."""
        image = model.model.config.image_token_id
        ids = [segment.ids[span.start : span.stop] for segment in segments for span in segment.scored]
        return "".join("[image]" if image in one else model.tokenizer.decode(one) for one in ids)

    for task, null in (
        ("rendered_text", "N/A N/A N/A N/A N/A"),
        ("identical_image", "N/A N/A N/A N/A N/A[image]"),
        ("image", "N/A N/A N/A N/A N/A\nA. [image]\nB. [image]\nC. [image]\nD. [image]"),
    ):
        (probe,) = probes_for(model, task, depths=1)
        words = "".join("[image]" if isinstance(part, Page) else part for part in probe.question)
        options = "".join(f"\n{letter}. [image]" for letter in "ABCD"[: len(probe.options)])
        assert looking(prompter.question_segments(probe)) == words + options
        assert looking(prompter.null_segments(probe)) == null


def test_a_preset_stands_alone_and_is_known() -> None:
    model = tiny("llama")
    with pytest.raises(SettingsError, match="no preset 'papers' of detection. Expected paper"):
        detect(model.model, processor(model), [], preset="papers")
    with pytest.raises(SettingsError, match="Give one of them"):
        detect(model.model, processor(model), [], preset="paper", prompt=ProbePrompt())


def test_questions_of_pictures_have_something_that_looks() -> None:
    model = tiny("qwen3_vl")
    picture, words = Page(image=page_image(1)), Page(text="Words.")
    prompter = Prompter(Backbone.of(model.model), model.tokenizer, model.image_processor)

    def asked(*question: str | Page, **options: bool) -> list[list[TokenSpan]]:
        probe = Probe("image", "p", (words,), question, (Evidence(0),), "a", 500)
        return [segment.scored for segment in ProbePrompter(prompter, ProbePrompt(**options)).question_segments(probe)]

    text, image = asked("This? ", picture)
    assert (len(text), len(image)) == (1, 1)
    assert asked("This? ", picture, images_look=False) == [text, []]
    with pytest.raises(QuestionError, match="no tokens that look"):
        asked(picture, images_look=False)
    with pytest.raises(PageError, match="no image that Qwen3-VL can take"):
        asked("This? ", words)


def test_pages_share_one_prefill_and_score_as_if_alone() -> None:
    model = tiny("qwen3_vl")
    pages = [Page(image=page_image(number)) for number in range(3)]
    probes = list(page_probes(pages, [("How did revenue change?", 0), ("Where is it?", 2)], context_length=4096))
    together = detect(model.model, processor(model), probes)
    for probe, scored in zip(probes, together.probes, strict=True):
        np.testing.assert_allclose(scored.scores, expected_scores(tiny("qwen3_vl"), probe), atol=1e-5)
    alone = [detect(model.model, processor(model), [probe]).probes[0] for probe in probes]
    for one, other in zip(alone, together.probes, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
        assert (one.hits == other.hits).all()
    table = together.table
    assert table.tasks == ("page",)
    assert table.at("page", 4096).n_examples == 2
    assert len(HeadSet.of_tasks(table, count=3)) == 3


def test_probes_that_share_a_context_keep_their_own_evidence() -> None:
    """Both have the same stretch of the first item, and each a whole item of its own beside it."""
    model = tiny("llama")
    items = tuple(Page(text=text) for text in ("Revenue grew. It fell.", "Water use.", "Staff numbers and tables."))

    def probe(name: str, *whole: int) -> Probe:
        evidence = (Evidence(0, 0, 13), *map(Evidence, whole))
        return Probe("text", name, items, ("How did revenue change?",), evidence, "a", 100)

    probes = [probe("first", 2), probe("second", 1), probe("third"), probe("fourth", 0)]
    context = ProbePrompter(Prompter(Backbone.of(model.model), model.tokenizer)).context(probes[0])
    parts = [[1, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert [context.evidence(one) for one in probes] == parts
    for probe_, scored in zip(probes, detect(model.model, processor(model), probes).probes, strict=True):
        np.testing.assert_allclose(scored.scores, expected_scores(tiny("llama"), probe_), atol=1e-5)


@pytest.mark.parametrize("independent", [False, True])
def test_scores_are_those_that_the_reranker_gives(independent: bool) -> None:
    model = tiny("qwen3_vl")
    pages = [Page(image=page_image(number)) for number in range(3)]
    question, head = "How did revenue change?", HeadId(1, 2)
    (probe,) = page_probes(pages, [(question, 1)], context_length=4096)
    run = detect(
        model.model,
        processor(model),
        [probe],
        independent=independent,
        prompt=ProbePrompt(null_question=PromptOptions().null_question),
    )
    heads = HeadSet((head,), n_layers=3, n_heads=4)
    reranker = Reranker(model.model, processor(model), heads=heads, independent=independent)
    ranked = reranker.rank(question, pages)
    (score,) = (one.score for one in ranked if one.position == 1)
    assert run.probes[0].scores[head] == pytest.approx(score, abs=1e-6)
    assert run.probes[0].hits[head] == (ranked[0].position == 1)


def test_mean_spread_recall_and_stability_follow_from_the_probes(tmp_path: Path) -> None:
    model = tiny("qwen3_vl")
    probes = probes_for(model, "rendered_text", examples=3)
    run = detect(model.model, processor(model), probes, model_id="org/tiny")
    scores = run.example_scores("rendered_text", LENGTH)
    assert scores.shape == (6, 3, 4)
    found = run.table.at("rendered_text", LENGTH)
    np.testing.assert_allclose(found.values, scores.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(found.spread, scores.std(axis=0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(found.recall_at_1, np.mean([probe.hits for probe in run.probes], axis=0), atol=1e-6)
    assert 0 <= run.stability("rendered_text", LENGTH, share=0.3).mean <= 1
    assert [probe.depth for probe in run.probes] == [0.0, 1.0] * 3
    with pytest.raises(DataError, match="No probes of the task"):
        run.example_scores("text", LENGTH)
    run.table.save(tmp_path / "scores.json")
    loaded = HeadScoresTable.load(tmp_path / "scores.json")
    np.testing.assert_array_equal(loaded.at("rendered_text", LENGTH).values, found.values)
    assert loaded.model_id == "org/tiny"


def test_sliding_layers_have_no_scores_and_are_never_selected() -> None:
    model = tiny("gemma3")
    table = detect_heads(model.model, processor(model), probes_for(model, "text"))
    scores = table.at("text", LENGTH)
    assert np.isnan(scores.values[[0, 2]]).all()
    assert np.isfinite(scores.values[[1, 3]]).all()
    assert scores.recall_at_1 is not None
    assert np.isnan(scores.recall_at_1[0]).all()
    assert table.selectable_layers == (1, 3)
    assert {head.layer for head in HeadSet.top(scores, count=8)} == {1, 3}


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = tiny("llama")
    probes = probes_for(model, "text", examples=3)
    whole = detect_heads(model.model, processor(model), probes)
    journal = tmp_path / "run.probes"

    def dying():  # type: ignore[no-untyped-def]
        yield from probes[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect(model.model, processor(model), dying(), journal=journal)
    with (journal / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"name": "text-11')  # killed while writing
    with pytest.raises(DataError, match="holds a detection run already"):
        detect(model.model, processor(model), probes, journal=journal)
    passes = []
    handle = model.model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    resumed = detect_heads(model.model, processor(model), probes, journal=journal, resume=True)
    first = len(passes)
    again = detect_heads(model.model, processor(model), probes, journal=journal, resume=True)
    handle.remove()
    assert 0 < first == len(passes), "nothing is run again when everything is there"
    for table in (resumed, again):
        np.testing.assert_array_equal(table.at("text", LENGTH).values, whole.at("text", LENGTH).values)
        np.testing.assert_array_equal(table.at("text", LENGTH).recall_at_1, whole.at("text", LENGTH).recall_at_1)


def test_a_run_is_not_resumed_with_other_settings_models_or_probes(tmp_path: Path) -> None:
    model, journal = tiny("llama"), tmp_path / "run.probes"
    probes = probes_for(model, "text")

    def go(model: Tiny = model, probes: list[Probe] = probes, **options: object) -> None:
        detect(model.model, processor(model), probes, journal=journal, resume=True, **options)  # type: ignore[arg-type]

    go(settings={"seed": 0})
    with pytest.raises(DataError, match=r"probes\.seed: was 0, now 1"):
        go(settings={"seed": 1})
    with pytest.raises(DataError, match=r"prompt\.null_question"):
        go(settings={"seed": 0}, prompt=ProbePrompt(null_question="nothing"))
    with pytest.raises(DataError, match="weights"):
        go(tiny("llama", seed=9), settings={"seed": 0})
    with pytest.raises(DataError, match="model_type"):
        go(tiny("qwen3"), settings={"seed": 0})
    with pytest.raises(DataError, match="not among these"):
        go(probes=probes[:1], settings={"seed": 0})
    with pytest.raises(DataError, match="fingerprint"):
        go(probes=probes_for(model, "text", seed=4), settings={"seed": 0})
    file = journal / "journal.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + b"{oops\n" + second)
    with pytest.raises(DataError, match=r"journal\.jsonl, line 2"):
        go(settings={"seed": 0})
    file.write_bytes(first + second.replace(b'"scores":["', b'"scores":["?'))
    with pytest.raises(DataError, match=r"journal\.jsonl, line 2: .* scores: .*base64"):
        go(settings={"seed": 0})


def test_what_cannot_be_detected_is_refused() -> None:
    model = tiny("llama")
    (probe, *_) = probes_for(model, "text")
    with pytest.raises(DataError, match="no probes"):
        detect_heads(model.model, processor(model), [])
    with pytest.raises(DataError, match="Two probes"):
        detect_heads(model.model, processor(model), [probe, probe])
    silent = Probe("text", "p", probe.items, ("Q?",), (), "a", LENGTH)
    with pytest.raises(DataError, match="no evidence"):
        detect_heads(model.model, processor(model), [silent])
    long = Probe("text", "long", (Page(text="word " * 5000),), ("Q?",), (Evidence(0),), "a", LENGTH)
    with pytest.raises(ContextOverflowError):
        detect_heads(model.model, processor(model), [long])


def test_a_head_that_looks_for_the_questions_words_is_found() -> None:
    model = tiny("llama")
    words = ("emissions", "revenue", "balance")
    pages = [Page(text=f"{word} {word} {word}") for word in words]
    questions = [(f"{word} {word}", index) for index, word in enumerate(words)]
    with torch.no_grad():
        torch.manual_seed(0)
        attention = model.model.model.layers[0].self_attn
        embedding = model.model.model.embed_tokens.weight
        embedding.copy_(torch.randn(embedding.shape))
        same = torch.randn(8, embedding.shape[1]) * 3 / embedding.shape[1] ** 0.5
        same[[0, 1, 4, 5]] = 0  # content alone: only the dimensions that rotate slowly
        attention.q_proj.weight[:8] = same  # head 0
        attention.k_proj.weight[:8] = same
    scores = detect_heads(model.model, processor(model), page_probes(pages, questions, context_length=64))
    found = scores.at("page", 64)
    best = HeadSet.top(found, count=1).heads[0]
    assert best == (0, 0)
    assert found.recall_at_1 is not None
    assert found.recall_at_1[best] > 0.5
