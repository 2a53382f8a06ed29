"""Probes as model inputs: items, question and null question as prompt segments, with every span known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from mmrh_retriever.errors import QuestionError, SettingsError
from mmrh_retriever.model.prompts import Prompter, PromptSegment
from mmrh_retriever.ranking.inputs import page_numbers
from mmrh_retriever.research.probes.probe import LETTERS, CountTokens, Probe
from mmrh_retriever.settings import PromptOptions
from mmrh_retriever.types import Page

Preset = Literal["paper"]


@dataclass(frozen=True, slots=True)
class ProbePrompt:
    """How probes are worded, and which tokens look for the evidence.

    Attributes:
        ranking: the wording of probes whose items are pages, as in :class:`Reranker`.
        instruction: what interleaved contexts begin with. They have no labels, and the other settings of ``ranking``.
        null_question: what is asked instead of the question, to calibrate: five times "N/A", as in the release of
            Li et al. 2026.
        null_keeps_options: the null question keeps a probe's options, the pictures offered as answers.
        null_keeps_pictures: the null question keeps the pictures that the question itself shows, such as the one that
            is looked for in ``identical_image``.
        images_look: the tokens of a question's pictures and options look for the evidence too.
    """

    ranking: PromptOptions = field(default_factory=PromptOptions)
    instruction: str = "Read the following text and pictures, then answer the question."
    null_question: str = "N/A N/A N/A N/A N/A"
    null_keeps_options: bool = True
    null_keeps_pictures: bool = False
    images_look: bool = True

    @classmethod
    def preset(cls, name: str) -> ProbePrompt:
        """The wording of a protocol by its name; ``paper`` is that of the release of Li et al. 2026 (docs/heads.md).

        Raises:
            SettingsError: an unknown name.
        """
        if name not in get_args(Preset):
            raise SettingsError(f"There is no preset {name!r} of detection. Expected {', '.join(get_args(Preset))}.")
        return cls(ranking=PromptOptions(count_question_label=False), null_keeps_pictures=True)


@dataclass(frozen=True, slots=True)
class ProbeContext:
    """A probe's context: one segment per item. Probes on the same items share it if they cut them alike.

    Each ``scored`` span of each segment, in order, is a part. ``item[i]`` is the item that part ``i`` belongs to, and
    ``cut_out[i]`` says whether it is a stretch of evidence, cut out of its item.
    """

    segments: tuple[PromptSegment, ...]
    item: tuple[int, ...]
    cut_out: tuple[bool, ...]

    def evidence(self, probe: Probe) -> list[bool]:
        """Whether each part is evidence for a probe: cut out as such, or of an item that is evidence as a whole."""
        whole = {span.item for span in probe.evidence if span.start is None}
        return [cut or item in whole for item, cut in zip(self.item, self.cut_out, strict=True)]


class ProbePrompter:
    """Writes probes for one model, with its prompter; ``prompt`` replaces the prompter's wording."""

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
        """A probe's items; an item that is evidence in part has a scored span for each part."""
        segments: list[PromptSegment] = []
        items: list[int] = []
        cut_out: list[bool] = []
        prompter = self.prompter(probe)
        for index, (item, number) in enumerate(zip(probe.items, page_numbers(probe.items), strict=True)):
            stretches = probe.stretches(index)
            if stretches:
                segment = prompter.texts_segment([text for text, _ in stretches])
                cut_out += [is_evidence for _, is_evidence in stretches]
            else:
                segment = prompter.page_segment(item, number)
                cut_out += [False] * len(segment.scored)
            segments.append(segment)
            items += [index] * len(segment.scored)
        return ProbeContext(tuple(segments), tuple(items), tuple(cut_out))

    def question_segments(self, probe: Probe) -> list[PromptSegment]:
        """A probe's question with its options: one segment where it is text alone."""
        return self._asked(probe, probe.question, probe.options)

    def null_segments(self, probe: Probe) -> list[PromptSegment]:
        """The null question instead of a probe's, with the probe's pictures and options if these are to be kept."""
        pictures = [part for part in probe.question if isinstance(part, Page) and self.prompt.null_keeps_pictures]
        options = probe.options if self.prompt.null_keeps_options else ()
        return self._asked(probe, (self.prompt.null_question, *pictures), options)

    def _asked(self, probe: Probe, question: Sequence[str | Page], options: Sequence[Page]) -> list[PromptSegment]:
        """Segments that follow one another; each picture is a segment of its own."""
        prompter = self.prompter(probe)
        parts: list[str | Page] = list(question)
        for letter, option in zip(LETTERS[: len(options)], options, strict=True):
            parts += [f"\n{letter}. ", option]
        if all(isinstance(part, str) for part in parts):
            return [prompter.question_segment("".join(map(str, parts)))]
        stretches: list[str | Page] = [""]
        for part in parts:
            if isinstance(part, str) and isinstance(stretches[-1], str):
                stretches[-1] += part
            else:
                stretches.append(part)
        segments = [prompter.opening_segment(str(stretches[0]))]
        for stretch in stretches[1:]:
            if isinstance(stretch, str):
                segments.append(prompter.text_segment(stretch, scored=True))
                continue
            segments.append(prompter.image_segment(stretch))
            if not self.prompt.images_look:
                segments[-1].scored = []
        if not stretches[0] and not any(segment.scored for segment in segments[1:]):
            raise QuestionError("The question has no tokens that look for the evidence. Ask something in words.")
        return [segment for segment in segments if len(segment)]


def token_counter(prompter: Prompter) -> CountTokens:
    """A function that counts the tokens an item takes in this model's prompt, without a label."""
    unlabelled = prompter.with_options(replace(prompter.options, page_label=""))
    return lambda page: len(unlabelled.page_segment(page, 1))
