"""Search: exact top-k on device, index directories, and the mining of hard negatives."""

from jaxemb.retrieval.exact import topk_search
from jaxemb.retrieval.fusion import min_max_fusion
from jaxemb.retrieval.index import Hit, SearchIndex, build_index, open_index
from jaxemb.retrieval.mining import Mined, Negatives, hard_negatives, mine_hard_negatives

__all__ = [
    "Hit",
    "Mined",
    "Negatives",
    "SearchIndex",
    "build_index",
    "hard_negatives",
    "min_max_fusion",
    "mine_hard_negatives",
    "open_index",
    "topk_search",
]
