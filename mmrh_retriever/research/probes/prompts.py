"""Probes as model inputs: their items, question and null question laid by a model's prompter, spans by bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mmrh_retriever.model.prompts import LaidPiece, Prompter, PromptOptions
from mmrh_retriever.ranking.rankings import page_numbers
from mmrh_retriever.research.probes.builder import CountTokens, Probe
from mmrh_retriever.types import Page

CONTEXT_INSTRUCTION = "Read the following text and pictures, then answer the question."
NULL_QUESTION = "N/A N/A N/A N/A N/A"
"""The uninformative question of detection: five times "N/A", as in the release of Li et al. 2026."""


@dataclass(frozen=True, slots=True)
class ProbePrompt:
    """How probes are worded, and which tokens look.

    ``ranking`` words the probes that are laid as pages of a ranking, as in :class:`Reranker`; interleaved contexts
    have ``instruction`` and no labels, and share the other settings. ``null_question`` takes the place of the question
    to calibrate; it keeps a probe's options (the pictures offered as answers) if ``null_keeps_options``.
    ``images_look`` counts the tokens of a question's pictures and options among those that look for the evidence.
    """

    ranking: PromptOptions = field(default_factory=PromptOptions)
    instruction: str = CONTEXT_INSTRUCTION
    null_question: str = NULL_QUESTION
    null_keeps_options: bool = True
    images_look: bool = True


@dataclass(frozen=True, slots=True)
class LaidContext:
    """A probe's context: one piece an item.

    Each ``scored`` span of each piece, in order, is a part: ``item[i]`` is the item that part ``i`` belongs to and
    ``evidence[i]`` whether it is evidence.
    """

    pieces: tuple[LaidPiece, ...]
    item: tuple[int, ...]
    evidence: tuple[bool, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


class ProbePrompter:
    """Lays probes for one model.

    Args:
        prompter: the model's prompter; its wording is replaced by ``prompt``'s.
        prompt: how probes are worded.

    Raises:
        UnsupportedModelError: the chat template can't be used.
    """

    def __init__(self, prompter: Prompter, prompt: ProbePrompt | None = None) -> None:
        self.prompt = prompt or ProbePrompt()
        wording = replace(self.prompt.ranking, instruction=self.prompt.instruction, page_label="")
        self.ranking = self._with(prompter, self.prompt.ranking)
        self.interleaved = self._with(prompter, wording)

    @staticmethod
    def _with(prompter: Prompter, options: PromptOptions) -> Prompter:
        return Prompter(prompter.backbone, prompter.tokenizer, prompter.image_processor, options)

    def prompter(self, probe: Probe) -> Prompter:
        """The prompter with the wording that a probe asks for."""
        return self.ranking if probe.labelled else self.interleaved

    def lay_context(self, probe: Probe) -> LaidContext:
        """A probe's items; an item that is evidence in part has a scored span for each part.

        Raises:
            PageError: an item that this model can't take or that can't be read.
        """
        pieces: list[LaidPiece] = []
        owners: list[int] = []
        evidence: list[bool] = []
        prompter = self.prompter(probe)
        numbers = page_numbers(probe.items)
        for place, item in enumerate(probe.items):
            cuts = sorted(
                (span.start, span.stop)
                for span in probe.evidence
                if span.item == place and span.start is not None and span.stop is not None
            )
            if not cuts or item.text is None:
                piece = prompter.lay_page(item, numbers[place])
                parts = [place in probe.gold] * len(piece.scored)
            else:
                piece, parts = _in_parts(prompter, item.text, cuts)
            pieces.append(piece)
            owners += [place] * len(parts)
            evidence += parts
        return LaidContext(tuple(pieces), tuple(owners), tuple(evidence))

    def lay_question(self, probe: Probe) -> list[LaidPiece]:
        """A probe's question with its options: one piece where it is text alone.

        Raises:
            QuestionError: an empty question.
            PageError: a picture that this model can't take or that can't be read.
        """
        return self._lay(probe, probe.question, probe.options)

    def lay_null_question(self, probe: Probe) -> list[LaidPiece]:
        """The null question in a probe's place, with the probe's options if these are to be kept."""
        options = probe.options if self.prompt.null_keeps_options else ()
        return self._lay(probe, (self.prompt.null_question,), options)

    def _lay(self, probe: Probe, question: Sequence[str | Page], options: Sequence[Page]) -> list[LaidPiece]:
        prompter = self.prompter(probe)
        parts: list[str | Page] = list(question)
        for letter, option in zip(option_letters(len(options)), options, strict=True):
            parts += [f"\n{letter}. ", option]
        if all(isinstance(part, str) for part in parts):
            return [prompter.lay_question("".join(str(part) for part in parts))]
        return prompter.lay_question_parts(parts, images_look=self.prompt.images_look)


def _in_parts(prompter: Prompter, text: str, cuts: Sequence[tuple[int, int]]) -> tuple[LaidPiece, list[bool]]:
    """A text item with a scored span for each part, and which of them are evidence; its newline counts for none."""
    piece = prompter.lay_text("")
    parts: list[bool] = []

    def add(part: str, *, is_evidence: bool) -> None:
        ids = prompter.plain(part)
        piece.add_text(ids, scored=True)
        parts.extend([is_evidence] if ids else [])

    done = 0
    for start, stop in cuts:
        add(text[done:start], is_evidence=False)
        add(text[max(start, done) : stop], is_evidence=True)
        done = max(stop, done)
    add(text[done:], is_evidence=False)
    piece.add_text(prompter.plain("\n"))
    return piece, parts


def option_letters(count: int) -> tuple[str, ...]:
    """A, B, C ... as many as asked for (at most 26)."""
    return tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count])


def token_counter(prompter: Prompter) -> CountTokens:
    """How many tokens an item takes in this model's prompt, without a label: what probe builders measure with."""
    plain = Prompter(
        prompter.backbone, prompter.tokenizer, prompter.image_processor, replace(prompter.options, page_label="")
    )

    def count(page: Page) -> int:
        return len(plain.lay_page(page, 1))

    return count
