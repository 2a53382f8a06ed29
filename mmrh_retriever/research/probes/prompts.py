"""Probes as model inputs: items, question and null question as prompt segments, with every span known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mmrh_retriever.model.prompts import Prompter, PromptSegment
from mmrh_retriever.ranking.inputs import page_numbers
from mmrh_retriever.research.probes.probe import LETTERS, CountTokens, Probe
from mmrh_retriever.settings import PromptOptions
from mmrh_retriever.types import Page

CONTEXT_INSTRUCTION = "Read the following text and pictures, then answer the question."
NULL_QUESTION = "N/A N/A N/A N/A N/A"
"""The uninformative question of detection: five times "N/A", as in the release of Li et al. 2026."""


@dataclass(frozen=True, slots=True)
class ProbePrompt:
    """How probes are worded, and which tokens look for the evidence.

    Attributes:
        ranking: the wording of probes whose items are pages, as in :class:`Reranker`.
        instruction: what interleaved contexts begin with. They have no labels, and the other settings of ``ranking``.
        null_question: what is asked instead of the question, to calibrate.
        null_keeps_options: the null question keeps a probe's options, the pictures offered as answers.
        images_look: the tokens of a question's pictures and options look for the evidence too.
    """

    ranking: PromptOptions = field(default_factory=PromptOptions)
    instruction: str = CONTEXT_INSTRUCTION
    null_question: str = NULL_QUESTION
    null_keeps_options: bool = True
    images_look: bool = True


@dataclass(frozen=True, slots=True)
class ProbeContext:
    """A probe's context: one segment per item.

    Each ``scored`` span of each segment, in order, is a part. ``item[i]`` is the item that part ``i`` belongs to, and
    ``evidence[i]`` says whether it is evidence.
    """

    segments: tuple[PromptSegment, ...]
    item: tuple[int, ...]
    evidence: tuple[bool, ...]


class ProbePrompter:
    """Writes probes for one model.

    Args:
        prompter: the model's prompter; its wording is replaced by ``prompt``'s.
        prompt: how probes are worded.

    Raises:
        UnsupportedModelError: the chat template can't be used.
    """

    def __init__(self, prompter: Prompter, prompt: ProbePrompt | None = None) -> None:
        self.prompt = prompt or ProbePrompt()
        self.ranking = prompter.with_options(self.prompt.ranking)
        self.interleaved = prompter.with_options(
            replace(self.prompt.ranking, instruction=self.prompt.instruction, page_label="")
        )

    def prompter(self, probe: Probe) -> Prompter:
        """The prompter with the wording that a probe asks for."""
        return self.ranking if probe.labelled else self.interleaved

    def context(self, probe: Probe) -> ProbeContext:
        """A probe's items; an item that is evidence in part has a scored span for each part.

        Raises:
            PageError: an item that this model can't take or that can't be read.
        """
        segments: list[PromptSegment] = []
        items: list[int] = []
        evidence: list[bool] = []
        prompter = self.prompter(probe)
        for index, (item, number) in enumerate(zip(probe.items, page_numbers(probe.items), strict=True)):
            cuts = probe.parts_of(index)
            if not cuts or item.text is None:
                segment = prompter.page_segment(item, number)
                parts = [index in probe.gold] * len(segment.scored)
            else:
                segment, parts = _in_parts(prompter, item.text, cuts)
            segments.append(segment)
            items += [index] * len(parts)
            evidence += parts
        return ProbeContext(tuple(segments), tuple(items), tuple(evidence))

    def question_segments(self, probe: Probe) -> list[PromptSegment]:
        """A probe's question with its options: one segment where it is text alone.

        Raises:
            QuestionError: an empty question.
            PageError: a picture that this model can't take or that can't be read.
        """
        return self._asked(probe, probe.question, probe.options)

    def null_segments(self, probe: Probe) -> list[PromptSegment]:
        """The null question instead of a probe's, with the probe's options if these are to be kept."""
        options = probe.options if self.prompt.null_keeps_options else ()
        return self._asked(probe, (self.prompt.null_question,), options)

    def _asked(self, probe: Probe, question: Sequence[str | Page], options: Sequence[Page]) -> list[PromptSegment]:
        prompter = self.prompter(probe)
        parts: list[str | Page] = list(question)
        for letter, option in zip(LETTERS[: len(options)], options, strict=True):
            parts += [f"\n{letter}. ", option]
        if all(isinstance(part, str) for part in parts):
            return [prompter.question_segment("".join(str(part) for part in parts))]
        return prompter.question_part_segments(parts, images_look=self.prompt.images_look)


def _in_parts(prompter: Prompter, text: str, cuts: Sequence[tuple[int, int]]) -> tuple[PromptSegment, list[bool]]:
    """A text item with a scored span for each part, and which of them are evidence; its newline counts for none."""
    segment = prompter.empty()
    parts: list[bool] = []

    def add(part: str, *, is_evidence: bool) -> None:
        ids = prompter.text.plain(part)
        segment.add_text(ids, scored=True)
        parts.extend([is_evidence] if ids else [])

    done = 0
    for start, stop in cuts:
        add(text[done:start], is_evidence=False)
        add(text[max(start, done) : stop], is_evidence=True)
        done = max(stop, done)
    add(text[done:], is_evidence=False)
    segment.add_text(prompter.text.plain("\n"))
    return segment, parts


def token_counter(prompter: Prompter) -> CountTokens:
    """A function that counts the tokens an item takes in this model's prompt, without a label."""
    unlabelled = prompter.with_options(replace(prompter.options, page_label=""))

    def count(page: Page) -> int:
        return len(unlabelled.page_segment(page, 1))

    return count
