"""Pages from documents: the documented path of what stands in :mod:`mmrh_retriever.adapters`."""

from mmrh_retriever.adapters.clues import PageClues, clues_from_metadata, decode_base64, is_data_uri, is_picture_text
from mmrh_retriever.adapters.page_sources import DEFAULT_MAX_BYTES, IMAGE_FORMATS, PageSource

__all__ = [
    "DEFAULT_MAX_BYTES",
    "IMAGE_FORMATS",
    "PageClues",
    "PageSource",
    "clues_from_metadata",
    "decode_base64",
    "is_data_uri",
    "is_picture_text",
]
