"""Search: exact top-k on device, and index directories."""

from jaxemb.retrieval.exact import topk_search
from jaxemb.retrieval.index import Hit, SearchIndex, build_index, open_index

__all__ = ["Hit", "SearchIndex", "build_index", "open_index", "topk_search"]
