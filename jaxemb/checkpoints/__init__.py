"""Checkpoints people already have: Hugging Face and sentence-transformers directories as plain values."""

from jaxemb.checkpoints.adapters import LoraAdapter, load_adapter, save_adapter, with_adapters
from jaxemb.checkpoints.heads import read_head, write_head
from jaxemb.checkpoints.hub import resolve
from jaxemb.checkpoints.new import new_directory
from jaxemb.checkpoints.parameters import Parameters
from jaxemb.checkpoints.sentence_transformers import (
    DirectoryFormat,
    ModelDirectory,
    load_encoder,
    read_directory,
    write_directory,
)
from jaxemb.checkpoints.tensors import CheckpointError, read_tensors, write_tensors
from jaxemb.checkpoints.weights import CheckpointFormat, Placement, load_weights, save_weights

__all__ = [
    "CheckpointError",
    "CheckpointFormat",
    "DirectoryFormat",
    "LoraAdapter",
    "ModelDirectory",
    "Parameters",
    "Placement",
    "load_adapter",
    "load_encoder",
    "load_weights",
    "new_directory",
    "read_directory",
    "read_head",
    "read_tensors",
    "resolve",
    "save_adapter",
    "save_weights",
    "with_adapters",
    "write_directory",
    "write_head",
    "write_tensors",
]
