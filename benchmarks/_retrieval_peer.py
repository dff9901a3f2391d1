"""The peers' side of ``retrieval.py``: LangChain and LlamaIndex with the settings that they come with, as their documentation shows them.

Run by the Python of an environment that has them:

    torch==2.13.0 langchain langchain-classic langchain-community langchain-text-splitters langchain-huggingface sentence-transformers
    rank_bm25 faiss-cpu llama-index-core llama-index-embeddings-huggingface llama-index-retrievers-bm25
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from _retrieval_work import MOST, Ask, Cost, judge, questions, timed

Built = tuple[dict[str, Ask], Cost, int]
"""Pipelines by name, what it took to build the index that all of them read, and how many chunks there are."""


def langchain(corpus: Path, model: str) -> Built:
    """``RecursiveCharacterTextSplitter`` as it comes, FAISS; hybrid: ``EnsembleRetriever`` with ``BM25Retriever``."""
    from langchain_classic.retrievers import EnsembleRetriever
    from langchain_community.document_loaders import DirectoryLoader, TextLoader
    from langchain_community.retrievers import BM25Retriever
    from langchain_community.vectorstores import FAISS
    from langchain_huggingface import HuggingFaceEmbeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    embeddings = HuggingFaceEmbeddings(model_name=model)
    embeddings.embed_query("warm")

    def build() -> tuple[list, FAISS, BM25Retriever]:
        loader = DirectoryLoader(str(corpus), glob="*.txt", loader_cls=TextLoader, loader_kwargs={"encoding": "utf-8"})
        chunks = RecursiveCharacterTextSplitter().split_documents(loader.load())
        return chunks, FAISS.from_documents(chunks, embeddings), BM25Retriever.from_documents(chunks, k=MOST)

    (chunks, vectors, words), cost = timed(build)
    dense = vectors.as_retriever(search_kwargs={"k": MOST})
    both = EnsembleRetriever(retrievers=[words, dense], weights=[0.5, 0.5])

    def ask(retriever: object) -> Ask:
        return lambda text: [(each.metadata["source"], each.page_content) for each in retriever.invoke(text)]

    return {"default": ask(dense), "hybrid": ask(both)}, cost, len(chunks)


def llamaindex(corpus: Path, model: str) -> Built:
    """``SentenceSplitter`` as it comes, ``VectorStoreIndex``; hybrid: ``QueryFusionRetriever`` with ``BM25Retriever``, both ways to fuse."""
    from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.retrievers import QueryFusionRetriever
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from llama_index.retrievers.bm25 import BM25Retriever

    Settings.llm = None
    Settings.embed_model = HuggingFaceEmbedding(model_name=model)
    Settings.embed_model.get_query_embedding("warm")

    def build() -> tuple[list, VectorStoreIndex, BM25Retriever]:
        nodes = SentenceSplitter().get_nodes_from_documents(SimpleDirectoryReader(str(corpus)).load_data())
        return nodes, VectorStoreIndex(nodes), BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=MOST)

    (nodes, index, words), cost = timed(build)
    dense = index.as_retriever(similarity_top_k=MOST)

    def both(mode: str) -> QueryFusionRetriever:
        return QueryFusionRetriever(
            [dense, words], similarity_top_k=MOST, num_queries=1, mode=mode, use_async=False, verbose=False
        )

    def ask(retriever: object) -> Ask:
        return lambda text: [
            (each.node.metadata["file_name"], each.node.get_content()) for each in retriever.retrieve(text)
        ]

    built = {"default": dense, "hybrid": both("reciprocal_rerank"), "hybrid_relative": both("relative_score")}
    return {name: ask(each) for name, each in built.items()}, cost, len(nodes)


PEERS: dict[str, Callable[[Path, str], Built]] = {"langchain": langchain, "llamaindex": llamaindex}


def main() -> None:
    """``PEER CORPUS MODEL DATA SPLIT MOST OUT``, by ``retrieval.py``."""
    import torch

    peer, corpus, model, data, split, most, cores, out = sys.argv[1:]
    torch.set_num_threads(int(cores))
    pipelines, cost, chunks = PEERS[peer](Path(corpus), model)
    asked = questions(Path(data), split, int(most) or None)
    figures = {
        "ingest_s": round(cost.seconds, 3),
        "ingest_cpu_s": round(cost.cpu_seconds, 3),
        "chunks": chunks,
        "pipelines": {name: judge(ask, asked) for name, ask in pipelines.items()},
    }
    Path(out).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
