"""Settings: how the prompt is worded, which model is loaded, and how pages are ranked.

:class:`RerankSettings` is the one object that the reranker, shared models, adapters, rankers of an evaluation, the
benchmark and the command line pass on. Two runs that rank alike have equal settings.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from mmrh_retriever.errors import QuestionError, SettingsError
from mmrh_retriever.files import FileModel, read_json

DEFAULT_FINAL_ROUND = 10
"""Pages. On generated documents this found the right page first about twice as often as raw scores across windows."""
FirstStage = Literal["bm25", "embedding", "hybrid", "all"]
"""Which pages of a library the model sees: those whose text fits by words, by meaning, or by both; or all of them."""
DEFAULT_TEXT_WEIGHT = 0.5
"""The text layer's part of a hybrid score."""
DEFAULT_TOKEN_BUDGET = 32_768
"""Tokens of pages that are read together, if the model's context allows as many."""

WHOLE_CONTEXT = 1 << 30
"""A token budget beyond any model's context: windows then end with the model's own."""

LOADING = ("device", "dtype", "attn_implementation", "max_pixels", "revision", "cache_dir", "local_files_only")
"""The settings that load a model, beside its name and ``model_kwargs``."""

PageContent = Literal["auto", "image", "text", "both"]
"""What of a page the model sees. ``auto``: its image if it has one and the model takes images, else its text."""


QuestionWeights = Literal["auto", "uniform", "frequency"]
"""How much each token of a question counts."""


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How the prompt is worded, and which of its tokens count.

    The wording is ours, after Li et al. 2026 (arXiv 2605.27243): an instruction, one labelled line per page, then the
    question. As in their release, a page's span holds the image's begin and end markers, and the question's span the
    label in front of it. Both choices move attention sinks in or out.

    ``separator`` stands behind the instruction and behind every page. ``page_label`` may hold ``{number}``, which
    counts from ``first_number``, and ``{name}`` for each name in the page's ``metadata``. ``strip_question`` cuts the
    blanks around a question off.
    """

    content: PageContent = "auto"
    instruction: str = "Find the pages that hold the evidence for the question."
    separator: str = "\n"
    page_label: str = "Page {number}: "
    first_number: int = 1
    question_label: str = "Question: "
    null_question: str = "N/A"
    strip_question: bool = True
    count_image_markers: bool = True
    count_question_label: bool = True

    def __post_init__(self) -> None:
        if self.content not in get_args(PageContent):
            raise SettingsError(f"content is one of {', '.join(get_args(PageContent))}; got {self.content!r}.")
        if not self.null_question.strip():
            raise QuestionError("null_question is empty; expected an uninformative text such as 'N/A'.")
        try:
            names = [name for _, name, _, _ in Formatter().parse(self.page_label) if name is not None]
        except ValueError as error:
            raise SettingsError(f"page_label has braces that don't match: {self.page_label!r} ({error}).") from error
        if wrong := [name for name in names if not name.isidentifier()]:
            raise SettingsError(
                f"page_label may hold {{number}} and names in the page's metadata, got {{{wrong[0]}}} in "
                f"{self.page_label!r}."
            )


def read_prompt(path: str | Path, base: PromptOptions | None = None) -> PromptOptions:
    """A wording from a JSON file that holds fields of :class:`PromptOptions`; the others are those of ``base``.

    Raises:
        DataError: the file can't be read, or has other fields or other values.
        SettingsError: a value that no prompt can have.
    """
    kinds = get_type_hints(PromptOptions)
    known: dict[str, Any] = {item.name: (kinds[item.name], item.default) for item in fields(PromptOptions)}
    form = create_model("PromptFile", __base__=FileModel, **known)
    given = read_json(Path(path), form, what="prompt file").model_dump(exclude_unset=True)
    try:
        return replace(base or PromptOptions(), **given)
    except (SettingsError, QuestionError) as error:
        raise SettingsError(f"{path}: {error}") from error


def _as_text(value: object) -> object:
    """Paths, and torch's devices and types, as text; anything else as it is."""
    if type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, Path) else value


TextOrNone = Annotated[str | None, BeforeValidator(_as_text)]
"""Text, which may be given as a path, or as a device or type of torch."""


def warn_caller(message: str, category: type[Warning] = DeprecationWarning) -> None:
    """A warning at the line that called this package, whatever lies between."""
    frame, level = inspect.currentframe(), 1
    between = ("mmrh_retriever", "pydantic", "langchain_core", "langchain_mmrh", "haystack", "haystack_integrations")
    while frame is not None and (name := frame.f_globals.get("__name__", "").partition(".")[0]):
        if name not in between and not name.startswith("llama_index"):  # its instrumentation is a package of its own
            break
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def settings_error(error: ValidationError) -> SettingsError:
    """What pydantic found first, as an error of ours."""
    first = error.errors(include_url=False)[0]
    problem = first.get("ctx", {}).get("error") or f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    got = repr(first["input"])
    return SettingsError(f"{problem} (got {got[:200]}{'...' * (len(got) > 200)})")


class RerankSettings(BaseModel):
    """Everything that decides how a model is loaded and how it ranks, but for the heads.

    Frozen, compared by value, and ready for JSON. A reranker on a model that is loaded already reads the second half
    alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model: TextOrNone = Field(None, description="Hub id or folder; the model that ships with the package if None.")
    device: TextOrNone = Field(None, description="Where the model runs; the first accelerator, else the CPU.")
    dtype: TextOrNone = Field(None, description="The weights' type, such as 'bfloat16'.")
    attn_implementation: str | None = Field(None, description="transformers' attention implementation.")
    max_pixels: int | None = Field(None, gt=0, description="Pixels that the model sees of an image at most.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    cache_dir: TextOrNone = Field(None, description="The hub's cache folder.")
    local_files_only: bool = Field(False, description="Never go to the network for the model.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More settings for loading the model, handed to transformers untouched."
    )

    token_budget: int | None = Field(
        None,
        gt=0,
        description="Tokens that are read together at most (a window). By default as the model's config says in "
        "mmrh_token_budget, else 32,768, or the model's context if that is shorter.",
    )
    window_pages: int | None = Field(
        None, gt=0, description="Pages that are read together at most; as many as the token budget takes by default."
    )
    independent: bool | None = Field(
        None,
        description="Encode each page as if it stood alone behind the prompt prefix. Pages then cost the same whatever "
        "stands beside them, and may be more than the model's context holds. The paper does not do so. By default as "
        "the model's config says in mmrh_independent: the bundled model does.",
    )
    calibrate: bool = Field(True, description="Subtract the attention of a null question.")
    final_round: int = Field(
        DEFAULT_FINAL_ROUND,
        description="Where pages take several windows, so many of the windows' best pages are compared once more in "
        "one window. They stand before the others, by the scores that they get there. 0 for none: then a page beside "
        "few or poor others scores too high.",
    )
    resize_first: bool = Field(
        False,
        description="Resize images to whole visual tokens before the image processor resizes them, as the code does "
        "that prepares images in the paper's release. It is for models that take images at their own size (Qwen-VL); "
        "with others it does nothing.",
    )
    hybrid: bool | Literal["auto"] = Field(
        "auto",
        description="Join attention with BM25 over the pages' text layers. 'auto' does so if the model's config says "
        "mmrh_hybrid, as the bundled model's does: for other models nobody has measured it.",
    )
    text_weight: float = Field(
        DEFAULT_TEXT_WEIGHT, ge=0, le=1, description="The text layer's part of a hybrid score; attention has the rest."
    )
    question_weights: QuestionWeights = Field(
        "auto",
        description="How much each token of a question counts: all alike ('uniform', as in the paper), or frequent "
        "ones less ('frequency'), by a file of token frequencies in the model's folder. 'auto': as the model's config "
        "says in mmrh_question_weights, else alike.",
    )
    options: PromptOptions = Field(default_factory=PromptOptions, description="Wording of the prompt.")

    @field_validator("final_round")
    @classmethod
    def _checked_final_round(cls, value: int) -> int:
        if value < 0 or value == 1:
            counts = "counts pages that are compared once more: 2 or more, or 0 for none"
            raise SettingsError(f"final_round {counts}; got {value}.")
        return value

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "final_heat" in given:
            warn_caller("final_heat= is called final_round= now.")
            given = {"final_round" if name == "final_heat" else name: value for name, value in given.items()}
        return given

    @classmethod
    def paper(cls, level: Literal["page", "layout"] = "page") -> Self:
        """The protocol of Li et al. 2026 (arXiv 2605.27243) on MMDocIR, for pages, or for layout boxes as images.

        Windows are cut by count, within the model's context, and compared by their raw scores. The wording is ours in
        the form of theirs: candidates are numbered from 0, and a blank line stands before the question. See
        ``docs/evaluation.md`` for each difference from the defaults. Boxes are ranked with ``method="crops"``.
        """
        layout = level == "layout"
        return cls(
            token_budget=WHOLE_CONTEXT,
            window_pages=50 if layout else 200,
            independent=False,
            final_round=0,
            resize_first=True,
            hybrid=False,
            question_weights="uniform",
            options=PromptOptions(
                instruction=f"Find the {level}s that hold the evidence for the question",
                separator="",
                page_label="\nLayout {layout_id} on page {page_index}: " if layout else "\nPage {number}: ",
                first_number=0,
                question_label="\n\nQuestion: ",
                strip_question=False,
            ),
        )

    @classmethod
    def of(cls, settings: RerankSettings | None, changes: Mapping[str, Any]) -> RerankSettings:
        """Settings with some of them changed; the defaults if there are none."""
        unknown = sorted(changes.keys() - {*cls.model_fields, "final_heat"})
        if unknown:
            raise TypeError(f"There is no setting {unknown[0]!r}. Settings are {', '.join(cls.model_fields)}.")
        try:
            return cls(**{**dict(settings or {}), **changes})
        except ValidationError as error:
            raise settings_error(error) from error

    @classmethod
    def of_pretrained(
        cls, model: str | Path | None, settings: RerankSettings | None, options: Mapping[str, Any]
    ) -> RerankSettings:
        """Settings for a model that is loaded by name; options that are no settings of ours go to transformers."""
        ours = {name: value for name, value in options.items() if name in (*cls.model_fields, "final_heat")}
        if model is not None:
            ours["model"] = model
        if more := {name: value for name, value in options.items() if name not in ours}:
            before = {} if settings is None else settings.model_kwargs
            ours["model_kwargs"] = {**before, **ours.get("model_kwargs", {}), **more}
        return cls.of(settings, ours)

    def loading(self) -> dict[str, Any]:
        """Keyword arguments of ``load_model``, without those left alone."""
        given = {name: getattr(self, name) for name in LOADING}
        return {**self.model_kwargs, **{name: value for name, value in given.items() if value not in (None, False)}}


def check_top_n(top_n: int | None, name: str = "top_n") -> int | None:
    """A number of results as it is; a :class:`SettingsError` if it is not a whole number of at least 1, or ``None``."""
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise SettingsError(f"{name} is a whole number of at least 1 (or None for all), got {top_n!r}.")
    return top_n
