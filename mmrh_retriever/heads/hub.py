"""Head sets on the Hugging Face Hub: read from a repository, found beside a model's weights there, and pushed."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrh_retriever.errors import DataError
from mmrh_retriever.files import is_file, is_folder

if TYPE_CHECKING:
    from typing import Self

    from mmrh_retriever.heads.sets import HeadSet

logger = logging.getLogger(__name__)

HEADS_FILE = "mmrh_heads.json"
"""A head set beside a model's weights, on disk or on the Hub; ``heads="published"`` takes it before any other."""
_CARD = "README.md"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class OnTheHub:
    """What a head set can do with repositories of the Hub."""

    __slots__ = ()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Read the head set of a Hub repository (``"org/repo"``), a local folder, or a file.

        In a repository or folder it is ``mmrh_heads.json``. What was fetched is kept in the Hub's cache, and found
        there without a network (``local_files_only``, ``HF_HUB_OFFLINE=1``).

        Args:
            source: the repository, folder or file.
            revision: a branch, tag or commit of the repository.
            cache_dir: the cache's folder; the Hub's own by default.
            local_files_only: ask nobody; take what is in the cache.
            token: for private repositories; the one that is logged in by default.

        Raises:
            DataError: no such repository, revision or file, no access, or not a head set.
            HeadSetError: heads or scores that are impossible.
        """
        if is_folder(source):
            return cls.load(Path(source) / HEADS_FILE)  # type: ignore[attr-defined, no-any-return]
        if is_file(source) or isinstance(source, Path):
            return cls.load(source)  # type: ignore[attr-defined, no-any-return]
        where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        try:
            found = hub_file(source, HEADS_FILE, **where)
        except (OSError, ValueError) as error:  # the Hub's own, of no repository, no access, no name of one
            raise DataError(
                f"{source!r} can't be read as a repository of head sets: {_first_line(error)} Expected 'org/repo', a "
                "folder or a file; for private repositories log in (`hf auth login`) or give token=."
            ) from error
        if found is None:
            at = "" if revision is None else f" at {revision}"
            raise DataError(
                f"{source} has no {HEADS_FILE}{at}, or it is not in the cache and the Hub could not be "
                "asked. Push one with HeadSet.push_to_hub, or detect heads with `mmrh detect`."
            )
        return cls.load(found)  # type: ignore[attr-defined, no-any-return]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Add retrieval heads",
        token: str | bool | None = None,
    ) -> str:
        """Write the set into a repository of the Hub as ``mmrh_heads.json``, with a short card if it has none.

        The repository may hold a model's weights: with them the set is found by itself.

        Args:
            repo_id: ``"org/repo"``; made if it is not there.
            private: whether a new repository is private; the organisation's default if ``None``.
            revision: the branch to write to, which must exist; ``main`` by default.
            commit_message: of the one commit.
            token: the one that is logged in by default.

        Returns:
            The commit's address.

        Raises:
            DataError: the Hub refuses it or can't be reached.
        """
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

        api = HfApi(token=token, library_name="mmrh-retriever")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / HEADS_FILE
            self.save(path)  # type: ignore[attr-defined]
            content = path.read_bytes()
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            added = [CommitOperationAdd(HEADS_FILE, content)]
            if not api.file_exists(repo_id, _CARD, revision=revision):
                added.append(CommitOperationAdd(_CARD, _card(self, repo_id).encode()))  # type: ignore[arg-type]
            done = api.create_commit(repo_id, added, commit_message=commit_message, revision=revision)
        except (OSError, ValueError, HTTPError) as error:  # HTTPError: the Hub is not reached
            raise DataError(
                f"The head set can't be written to {repo_id}: {_first_line(error)} Log in with a token that may write "
                "there (`hf auth login`), or give token=."
            ) from error
        return str(done.commit_url)


def hub_file(repo_id: str, name: str, **where: Any) -> Path | None:
    """A file of a repository, fetched or from the cache; ``None`` if it is not there, or not in reach.

    ``where`` is ``revision``, ``cache_dir``, ``local_files_only`` and ``token``. What the cache knows of a commit is
    not asked for again.

    Raises:
        OSError, ValueError: the Hub's own, for a repository that is not there or not allowed, or no name of one.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    revision, cache = where.get("revision"), where.get("cache_dir")
    if revision is not None and _COMMIT.fullmatch(revision):
        known = try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=revision)
        if known is not None:
            return Path(known) if isinstance(known, str) else None  # it is known that the commit has no such file
    try:
        return Path(hf_hub_download(repo_id, name, **where))
    except EntryNotFoundError:
        return None


def heads_beside(repo_id: str, **where: Any) -> Path | None:
    """The head set beside the weights of a model on the Hub, ``None`` if it has none. ``where`` as :func:`hub_file`."""
    try:
        return hub_file(repo_id, HEADS_FILE, **where)
    except (OSError, ValueError) as error:
        logger.warning("Whether %s has a head set (%s) can't be told: %s", repo_id, HEADS_FILE, _first_line(error))
        return None


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if text.endswith(".") else f"{text}."


def _card(heads: HeadSet, repo_id: str) -> str:
    """A repository's card: the model that the heads belong to, how they were found, and how to use them."""
    base = f"base_model: {heads.model_id}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", heads.model_id or "") else ""
    known = {
        "model": heads.model_id,
        "heads": f"{len(heads)}: {', '.join(map(str, heads.heads[:8]))}{', ...' if len(heads) > 8 else ''}",
        "tasks": ", ".join(heads.tasks),
        "context length": heads.context_length,
        "source": heads.source,
    }
    rows = "".join(f"| {name} | {_cell(value)} |\n" for name, value in known.items() if value)
    return (
        f"---\nlibrary_name: mmrh-retriever\n{base}tags: [retrieval-heads, reranking]\n---\n# Retrieval heads\n\n"
        "Attention heads that `mmrh-retriever` ranks pages with (layer-head, both from 0).\n\n"
        f"| | |\n|---|---|\n{rows}\n"
        "```python\nfrom mmrh_retriever import HeadSet, Reranker\n\n"
        f'heads = HeadSet.from_pretrained("{repo_id}")\n'
        f'reranker = Reranker.from_pretrained("{heads.model_id or "MODEL"}", heads=heads)\n```\n'
    )


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
