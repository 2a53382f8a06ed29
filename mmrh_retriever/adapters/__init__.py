"""What adapters to other frameworks build on: settings, pages found from documents, documents ranked.

Names below are public; modules inside may change.
"""

from mmrh_retriever.adapters.clues import PageClues, clues_from_metadata, decode_base64, is_data_uri, is_picture_text
from mmrh_retriever.adapters.page_sources import DEFAULT_MAX_BYTES, PageSource
from mmrh_retriever.adapters.ranking import (
    ERROR_KEY,
    GRID_CELLS,
    NEIGHBOUR_KEY,
    REGIONS_KEY,
    RETRIEVAL_SCORE_KEY,
    AdapterSettings,
    RankedItem,
    page_key,
    with_some_regions,
)
from mmrh_retriever.adapters.settings import DEFAULT_PAGE_MEMORY
from mmrh_retriever.locks import Lock
from mmrh_retriever.settings import check_top_n

__all__ = [
    "DEFAULT_MAX_BYTES", "DEFAULT_PAGE_MEMORY", "ERROR_KEY", "GRID_CELLS", "NEIGHBOUR_KEY", "REGIONS_KEY",
    "RETRIEVAL_SCORE_KEY", "AdapterSettings", "Lock", "PageClues", "PageSource", "RankedItem", "check_top_n",
    "clues_from_metadata", "decode_base64", "is_data_uri", "is_picture_text", "page_key", "with_some_regions",
]  # fmt: skip
