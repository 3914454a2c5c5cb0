"""From features to classes: a trained linear layer, class means, streaming LDA, probes of frozen features."""

from jaxemb.classifiers.linear import Classifier
from jaxemb.classifiers.nearest_mean import (
    NMCState,
    nmc_features,
    nmc_init,
    nmc_logits,
    nmc_means,
    nmc_merge,
    nmc_predict,
    nmc_prequential,
    nmc_update,
)
from jaxemb.classifiers.probes import logistic_regression, nearest_mean, nearest_neighbours
from jaxemb.classifiers.streaming_lda import SldaState, slda_init, slda_logits, slda_update

__all__ = [
    "Classifier",
    "NMCState",
    "SldaState",
    "logistic_regression",
    "nearest_mean",
    "nearest_neighbours",
    "nmc_features",
    "nmc_init",
    "nmc_logits",
    "nmc_means",
    "nmc_merge",
    "nmc_predict",
    "nmc_prequential",
    "nmc_update",
    "slda_init",
    "slda_logits",
    "slda_update",
]
