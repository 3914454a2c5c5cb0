"""Evaluation: metrics as pure functions, and evaluators that take an embedder and return named numbers."""

from jaxemb.evaluate import metrics
from jaxemb.evaluate.grid import Cell, Grid, grid
from jaxemb.evaluate.retrieval import (
    RetrievalScores,
    RetrievalSet,
    read_beir,
    retrieval,
    retrieval_evaluator,
    retrieval_per_query,
    score_run,
)
from jaxemb.evaluate.significance import PairedTest, holm, paired_significance
from jaxemb.evaluate.sts import StsSet, read_sts, sts, sts_evaluator
from jaxemb.text_encoder import Evaluator, TextEncoder

__all__ = [
    "Cell",
    "Evaluator",
    "Grid",
    "PairedTest",
    "RetrievalScores",
    "RetrievalSet",
    "StsSet",
    "TextEncoder",
    "grid",
    "holm",
    "metrics",
    "paired_significance",
    "read_beir",
    "read_sts",
    "retrieval",
    "retrieval_evaluator",
    "retrieval_per_query",
    "score_run",
    "sts",
    "sts_evaluator",
]
