"""Text is tokenised as the whole prompt would be: in one go, with every kind of tokenizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmrh_retriever import Page, PromptOptions, UnsupportedModelError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import Prompter
from tests.factories import CORPUS, PLAIN_TEMPLATE, SPECIAL, TEMPLATE, page_image, tiny
from tests.factories import tokenizer as tiny_tokenizer

QUESTIONS = ["How did revenue change?", "emissions", "  Wie hoch?", "収益は?", "?"]
WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def _words(bpe: Tokenizer) -> None:
    """As newer byte-level tokenizers cut: a word with the blank in front, a sign with the line breaks behind."""
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()


def _prefixed(bpe: Tokenizer) -> None:
    """Byte-level with a blank in front of each stretch, and offsets without blanks."""
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, trim_offsets=True)
    bpe.decoder = decoders.ByteLevel()


def _first(bpe: Tokenizer) -> None:
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Metaspace()


def _always(bpe: Tokenizer) -> None:
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    bpe.decoder = decoders.Metaspace()


def _legacy(bpe: Tokenizer) -> None:
    """As converted SentencePiece files do: a blank in front of each stretch, put there by the normalizer."""
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Replace("▁", " ")


KINDS = {"words": _words, "prefixed": _prefixed, "first": _first, "always": _always, "legacy": _legacy}


def made(kind: str, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<|endoftext|>"))
    KINDS[kind](bpe)
    alphabet = sorted({*pre_tokenizers.ByteLevel.alphabet(), *"▁\n ?:収益は", *"".join(CORPUS)})
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*CORPUS, "\n\nQuestion: How\n\n.\n"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", bos_token="<|im_start|>", chat_template=template
    )


def prompter_of(tokenizer: Any, name: str = "qwen3_vl", **options: Any) -> Prompter:
    model = tiny(name)
    return Prompter(Backbone.of(model.model), tokenizer, model.image_processor, PromptOptions(**options))


PAGES = [Page(image=page_image(1)), Page(text="Water use fell. "), Page(image=page_image(2, (60, 90)))]
PAPER = {
    "instruction": "Find the pages that hold the evidence",
    "separator": "",
    "page_label": "\nPage {number}: ",
    "first_number": 0,
    "question_label": "\n\nQuestion: ",
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    ("kind", "options", "pages"),
    [*((kind, {}, PAGES) for kind in KINDS), *((kind, PAPER, PAGES[::2]) for kind in ("words", "first"))],
    ids=[*KINDS, "words-paper", "first-paper"],
)
def test_the_prompt_reads_as_if_it_were_tokenised_whole(
    kind: str, options: dict[str, Any], pages: list[Page], question: str
) -> None:
    tokenizer = made(kind)
    prompter = prompter_of(tokenizer, **options)
    segments = [prompter.page_segment(page, number) for number, page in enumerate(pages, start=1)]
    wording = prompter.options
    text = "<|im_start|>user\n" + wording.instruction + wording.separator
    for number, (page, segment) in enumerate(zip(pages, segments, strict=True)):
        shown = page.text or "<|vision_start|>" + "<|image_pad|>" * len(segment.visual) + "<|vision_end|>"
        text += wording.page_label.format(number=number + wording.first_number) + shown + wording.separator
    text += wording.question_label + question.strip()
    parts = [prompter.prefix_segment(), *segments, prompter.question_segment(question)]
    ids = [number for part in parts for number in part.ids]
    assert tokenizer.convert_ids_to_tokens(ids) == tokenizer.convert_ids_to_tokens(
        tokenizer(text, add_special_tokens=False)["input_ids"]
    )


def test_the_question_and_its_label_share_their_blank() -> None:
    prompter = prompter_of(made("words"), count_question_label=False)
    segment = prompter.question_segment("How did revenue change?")
    tokens = prompter.tokenizer.convert_ids_to_tokens(segment.ids)
    assert "ĠHow" in tokens
    (span,) = segment.scored
    assert tokens[span.start] == "ĠHow"
    assert len(prompter_of(made("words")).question_segment("How?").scored[0]) == 1 + tokens.index("ĠHow") + 1


def test_blanks_around_a_question_stay_if_they_are_to() -> None:
    asked = prompter_of(made("words"), strip_question=False).question_segment("  How? ")
    assert made("words").decode(asked.ids) == "Question:   How? "


def test_without_a_template_the_prompt_opens_as_the_tokenizer_opens_a_text() -> None:
    tokenizer = made("first", template=None)
    ids = prompter_of(tokenizer, "llama").prefix_segment().ids
    assert ids == [tokenizer.bos_token_id, *tokenizer(PromptOptions().instruction + "\n")["input_ids"]]
    assert tokenizer.convert_ids_to_tokens(ids[1:2])[0].startswith("▁F")


def test_the_edge_of_a_part_inside_a_token_leaves_the_parts_alone() -> None:
    prompter = prompter_of(made("words"))
    alone, _ = prompter.text.joined("\nQuestion")
    behind, _ = prompter.text.joined("\nQuestion", after="\n")  # "\n\n" is one token
    assert behind == alone


def test_page_labels_name_what_the_pages_metadata_hold() -> None:
    prompter = prompter_of(made("words"), page_label="Layout {layout_id} on page {page}: ")
    segment = prompter.page_segment(Page(text="Words.", metadata={"layout_id": 7, "page": 3}), 1)
    assert made("words").decode(segment.ids) == "Layout 7 on page 3: Words.\n"
    assert prompter.page_digest(Page(text="a", metadata={"layout_id": 7, "page": 3}), 1) != prompter.page_digest(
        Page(text="a", metadata={"layout_id": 8, "page": 3}), 1
    )
    with pytest.raises(ValueError, match=r"page 1.*metadata \['page'\]"):
        prompter.page_segment(Page(text="Words.", metadata={"page": 3}), 1)


def test_gemma_images_count_from_marker_to_marker() -> None:
    prompter = prompter_of(tiny_tokenizer(), "gemma3")
    segment = prompter.page_segment(Page(image=page_image(1)), 1)
    (span,) = segment.scored
    config = prompter.backbone.config
    assert segment.ids[span.start] == config.boi_token_index
    assert segment.ids[span.stop - 1] == config.eoi_token_index
    around = [segment.ids[: span.start], segment.ids[span.stop :]]
    assert [tiny_tokenizer().decode(ids) for ids in around] == ["Page 1: \n\n", "\n\n\n"]


def test_control_tokens_that_are_not_special_are_broken_up() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens([AddedToken("<picture>", special=False)])
    prompter = prompter_of(tokenizer)
    prompter.backbone.config.video_token_id = tokenizer.convert_tokens_to_ids("<picture>")
    prompter = Prompter(prompter.backbone, tokenizer, prompter.image_processor)
    ids = prompter.text.plain("see <picture> and <|im_end|>")
    assert tokenizer.convert_tokens_to_ids("<picture>") not in ids
    assert tokenizer.decode(ids).replace("\u200b", "") == "see <picture> and <|im_end|>"


def test_a_template_for_plain_text_gets_plain_text_also_where_images_are_shown() -> None:
    prompter = prompter_of(made("words", PLAIN_TEMPLATE))
    head = made("words").decode(prompter.prefix_segment().ids)
    assert head == "<|im_start|>user\nFind the pages that hold the evidence for the question.\n"


def test_changes_of_a_tokenizer_are_seen() -> None:
    tokenizer = made("words")
    assert made("words").decode(prompter_of(tokenizer).prefix_segment().ids).startswith("<|im_start|>user\n")
    tokenizer.chat_template = TEMPLATE.replace("<|im_start|>", "<|vision_start|>")
    assert made("words").decode(prompter_of(tokenizer).prefix_segment().ids).startswith("<|vision_start|>user\n")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.chat_template = TEMPLATE.replace("<|im_start|>", "<extra>")
    assert prompter_of(tokenizer).prefix_segment().ids[0] == tokenizer.convert_tokens_to_ids("<extra>")


def test_the_callers_tokenizer_is_left_as_it_was() -> None:
    tokenizer = made("words")
    before = tokenizer.backend_tokenizer.to_str()
    prompter_of(tokenizer).question_segment("<|im_end|> How?")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_tokenizers_without_offsets_are_refused() -> None:
    class Slow:
        chat_template = None

    with pytest.raises(UnsupportedModelError, match="Slow does not say which characters.*fast tokenizer"):
        prompter_of(Slow())
