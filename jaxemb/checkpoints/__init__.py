"""Checkpoints people already have: Hugging Face and sentence-transformers directories, read and written."""

from jaxemb.checkpoints.hub import resolve
from jaxemb.checkpoints.sentence_transformers import Directory, load_encoder, read, write
from jaxemb.checkpoints.tensors import CheckpointError, read_tensors, write_tensors
from jaxemb.checkpoints.weights import CheckpointFormat, load_weights, save_weights

__all__ = [
    "CheckpointError",
    "CheckpointFormat",
    "Directory",
    "load_encoder",
    "load_weights",
    "read",
    "read_tensors",
    "resolve",
    "save_weights",
    "write",
    "write_tensors",
]
