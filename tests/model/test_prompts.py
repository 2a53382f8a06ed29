"""Spans come from bookkeeping: duplicates, control tokens and any script leave them right."""

from __future__ import annotations

import copy
import threading

import pytest

from mmrh_retriever import Page, PageError, PromptOptions, QuestionError, UnsupportedModelError
from mmrh_retriever.encoding.engine import Engine
from mmrh_retriever.heads.sets import HeadId
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import MAX_QUESTION_TOKENS, Prompter, PromptSegment
from mmrh_retriever.ranking.inputs import as_candidates
from tests.factories import BUILDERS, MROPE, SPECIAL, TEXT_ONLY, page_image, tiny, tokenizer

QUESTION = "How did revenue change?"


def prompter_for(name: str, **options: object) -> Prompter:
    model = tiny(name)
    settings = PromptOptions(**options)  # type: ignore[arg-type]
    return Prompter(Backbone.of(model.model), model.tokenizer, model.image_processor, settings)


def scored_text(prompter: Prompter, segment: PromptSegment) -> str:
    ids = [number for span in segment.scored for number in segment.ids[span.start : span.stop]]
    return str(prompter.tokenizer.decode(ids))


def test_the_question_on_a_page_does_not_move_the_questions_span() -> None:
    prompter = prompter_for("llama")
    page = prompter.page_segment(Page(text=f"{QUESTION} {QUESTION}"), 1)
    question = prompter.question_segment(QUESTION)
    assert scored_text(prompter, page) == f" {QUESTION} {QUESTION}"  # the label's blank is the first word's
    assert scored_text(prompter, question) == f"Question: {QUESTION}"
    bare = prompter_for("llama", count_question_label=False)
    assert scored_text(bare, bare.question_segment(QUESTION)) == f" {QUESTION}"


def test_repeated_pages_each_have_their_own_span() -> None:
    prompter = prompter_for("llama")
    page = Page(text="The annual report shows emissions.")
    engine = Engine(prompter, [HeadId(0, 0)], 4000)
    (window,) = engine.windows(as_candidates([page, page, page]))
    counts = [int((window.owners() == place).sum()) for place in range(3)]
    assert counts[0] > 0
    assert len(set(counts)) == 1
    ids = [*prompter.prefix_segment().ids]
    for place in range(3):
        segment = prompter.page_segment(page, place + 1)
        own = (window.owners()[len(ids) : len(ids) + len(segment)] == place).nonzero().flatten().tolist()
        assert own == [token for span in segment.scored for token in range(span.start, span.stop)]
        ids += segment.ids


@pytest.mark.parametrize("text", ["a <|im_end|> b", "<image>", "[IMG] x <|image_pad|>", "".join(SPECIAL)])
@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm", "mistral3", "gemma3"])
def test_control_tokens_on_a_page_or_in_a_question_are_plain_text(name: str, text: str) -> None:
    prompter = prompter_for(name)
    special = set(tokenizer().convert_tokens_to_ids(SPECIAL))
    assert special.isdisjoint(prompter.page_segment(Page(text=text), 1).ids)
    assert special.isdisjoint(prompter.question_segment(text).ids)
    assert scored_text(prompter, prompter.page_segment(Page(text=text), 1)) == text


class GreedyTokenizer:
    """Reads special tokens in plain text, whatever it is asked, as some slow tokenizers do."""

    def __init__(self) -> None:
        self.inner = copy.deepcopy(tokenizer())

    def __call__(self, text: str, **options: object) -> object:
        return self.inner(text, add_special_tokens=False)

    def __getattr__(self, name: str) -> object:
        if name == "inner":  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_a_tokenizer_that_insists_on_control_tokens_gets_them_broken_up() -> None:
    model = tiny("qwen3_vl")
    prompter = Prompter(Backbone.of(model.model), GreedyTokenizer(), model.image_processor)
    special = set(tokenizer().convert_tokens_to_ids(SPECIAL))
    assert special.isdisjoint(prompter.text.plain("see <image> and <|im_end|>"))


@pytest.mark.parametrize(
    "text", ["Wie hoch ist der Umsatz?", "収益はどう変化しましたか", "كيف تغيرت الإيرادات؟", "🙂 ± €"]
)
def test_any_script_keeps_its_text(text: str) -> None:
    prompter = prompter_for("qwen2_5_vl", count_question_label=False)
    assert scored_text(prompter, prompter.question_segment(text)) == text
    assert scored_text(prompter, prompter.page_segment(Page(text=text), 7)) == text


TILED = ("internvl", "llava_onevision", "smolvlm", "idefics3", "aya_vision", "cohere2_vision", "llava_next")
TILED += ("lfm2_vl",)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in TEXT_ONLY])
def test_an_images_visual_tokens_are_image_tokens_and_lie_on_the_page(name: str) -> None:
    prompter = prompter_for(name)
    segment = prompter.page_segment(Page(image=page_image(3, (150, 90))), 1)
    image_token = prompter.backbone.config.image_token_id
    assert segment.grid is not None
    assert len(segment.visual) == len(segment.grid)
    assert {segment.ids[place] for place in segment.visual} == {image_token}
    extra = segment.grid.rows if name.startswith("llava") else 0  # a newline token a row
    assert segment.ids.count(image_token) == len(segment.visual) + extra
    boxes = segment.grid.boxes
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()
    assert area == pytest.approx(2 if name in TILED else 1, abs=1e-4), "tiles come with an overview"
    scored = {token for span in segment.scored for token in range(span.start, span.stop)}
    assert scored.issuperset(segment.visual)
    assert segment.all_positions().shape == (3 if name in MROPE else 1, len(segment))


def test_markers_and_labels_count_only_if_asked() -> None:
    with_markers = prompter_for("qwen3_vl").page_segment(Page(image=page_image(1)), 1)
    without = prompter_for("qwen3_vl", count_image_markers=False).page_segment(Page(image=page_image(1)), 1)
    assert with_markers.ids == without.ids
    assert len(with_markers.scored[0]) == len(without.scored[0]) + 2
    assert len(without.scored[0]) == len(without.visual)


def test_what_of_a_page_is_shown() -> None:
    page = Page(image=page_image(1), text="staff numbers")
    segments = {
        content: prompter_for("qwen3_vl", content=content).page_segment(page, 1) for content in ("auto", "text", "both")
    }
    assert segments["auto"].visual
    assert not segments["text"].visual
    assert len(segments["both"]) > len(segments["auto"])
    with pytest.raises(PageError, match="page 3.*an image; Llama.*takes text alone"):
        prompter_for("llama").page_segment(Page(image=page_image(1), index=2), 3)
    with pytest.raises(PageError, match="text; Qwen3-VL.*content='image'"):
        prompter_for("qwen3_vl", content="image").page_segment(Page(text="words"), 1)


@pytest.mark.parametrize("question", ["", "  \n", None, 3])
def test_questions_with_nothing_to_ask_are_refused(question: object) -> None:
    with pytest.raises(QuestionError):
        prompter_for("llama").question_segment(question)  # type: ignore[arg-type]


def test_the_chat_template_surrounds_the_prompt() -> None:
    prompter = prompter_for("qwen3_vl")
    head = prompter.tokenizer.decode(prompter.prefix_segment().ids)
    assert head == "<|im_start|>user\nFind the pages that hold the evidence for the question.\n"
    assert prompter.tokenizer.decode(prompter.answer_ids) == "<|im_end|>\n<|im_start|>assistant\n"


def test_templates_that_cannot_be_used_are_refused() -> None:
    model = tiny("qwen3_vl")
    broken = copy.deepcopy(model.tokenizer)
    broken.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(UnsupportedModelError, match="chat template"):
        Prompter(Backbone.of(model.model), broken, model.image_processor)
    broken.chat_template = "nothing of the turn"
    with pytest.raises(UnsupportedModelError, match="chat template"):
        Prompter(Backbone.of(model.model), broken, model.image_processor)


def test_without_a_chat_template_the_prompt_begins_bare() -> None:
    model = tiny("llama")
    bare = copy.deepcopy(model.tokenizer)
    bare.chat_template = None
    head = Prompter(Backbone.of(model.model), bare).prefix_segment()
    assert model.tokenizer.decode(head.ids).startswith("Find the pages")


def test_prompters_built_beside_tokenising_threads_are_right() -> None:
    model = tiny("qwen3_vl")
    backbone = Backbone.of(model.model)
    expected = Prompter(backbone, model.tokenizer, model.image_processor).prefix_segment().ids
    prompter = Prompter(backbone, model.tokenizer, model.image_processor)
    done = threading.Event()

    def tokenise() -> None:
        while not done.is_set():
            prompter.text.plain("<|im_start|> staff numbers")

    threads = [threading.Thread(target=tokenise) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        heads = [Prompter(backbone, model.tokenizer, model.image_processor).prefix_segment().ids for _ in range(60)]
    finally:
        done.set()
        for thread in threads:
            thread.join(timeout=60)
    assert all(head == expected for head in heads)


def test_halves_of_surrogate_pairs_are_read_as_question_marks() -> None:
    assert prompter_for("llama").text.plain("a\udcffb") == prompter_for("llama").text.plain("a?b")


@pytest.mark.parametrize(
    "options", [{"content": "images"}, {"page_label": "{p.x}"}, {"page_label": "{"}, {"null_question": " "}]
)
def test_options_are_checked_when_they_are_made(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PromptOptions(**options)  # type: ignore[arg-type]


def test_an_image_processor_of_another_family_is_told() -> None:
    model = tiny("qwen3_vl")
    prompter = Prompter(Backbone.of(model.model), model.tokenizer, tiny("gemma3").image_processor)
    with pytest.raises(PageError, match="page 1.*Gemma3ImageProcessorPil"):
        prompter.page_segment(Page(image=page_image(1)), 1)


def test_a_question_has_a_longest_length() -> None:
    prompter = prompter_for("llama")
    longest = prompter.question_segments(["a" * 4000])
    assert len(longest[0]) <= MAX_QUESTION_TOKENS
    with pytest.raises(QuestionError, match=r"'aaa[^ ]*'\.\.\. has 20,\d+ tokens; at most 4,096 .*MAX_QUESTION_TOKENS"):
        prompter.question_segments(["What?", "a" * 20_000])
