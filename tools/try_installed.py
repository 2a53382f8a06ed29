"""The README's lines, on installed packages and without the source tree (`make dist` runs this in a clean environment).

    python -I try_installed.py SAMPLE.pdf

All packages have to find the right page of the sample report.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

from haystack import Document
from haystack_integrations.components.rankers.mmrh import MMRHRanker
from langchain_mmrh import MMRHRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.mmrh_rerank import MMRHRerank

import mmrh_retriever
from mmrh_retriever import Reranker, read_pdf

QUESTION, EXPECTED = "Who inspected the lifeboats of the Storm Petrel?", 7


def main(file: str) -> None:
    """Rank the sample's pages in all four ways, and end with an error if one is wrong."""
    if "site-packages" not in str(mmrh_retriever.__file__):
        sys.exit(f"Expected the installed package, got {mmrh_retriever.__file__}.")
    reranker = Reranker.from_pretrained()
    top = reranker.rank(QUESTION, read_pdf(file, pages=[2, 5, 6, 9]), top_n=2)

    nodes = [NodeWithScore(node=TextNode(text="-", metadata={"file_path": file, "page": n})) for n in (3, 7)]
    found = MMRHRerank(reranker=reranker, top_n=1).postprocess_nodes(nodes, query_str=QUESTION)

    retriever = MMRHRetriever(files=[file], first_stage="bm25", candidates=2, k=1, reranker=reranker)
    documents = retriever.invoke(QUESTION)

    candidates = [Document(content="-", meta={"file_path": file, "page_number": n}) for n in (3, 7)]
    ranked = MMRHRanker(reranker=reranker, top_k=1).run(QUESTION, candidates)["documents"]

    numbers = [documents[0].metadata["page"] + 1, found[0].metadata["page"], ranked[0].meta["page_number"]]
    got = [top[0].page.number, *numbers]
    if got != [EXPECTED] * 4:
        sys.exit(f"Expected page {EXPECTED} from Python, LangChain, LlamaIndex and Haystack, got {got}.")
    sys.stdout.write(f"mmrh-retriever {version('mmrh-retriever')}: page {EXPECTED} first in all four.\n")


if __name__ == "__main__":
    main(sys.argv[1])
