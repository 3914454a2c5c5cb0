"""Compiling a run for a TPU slice without one, and reading its program: memory, collectives, roofline."""

from jaxemb.aot.compile import compile_run
from jaxemb.aot.report import Report
from jaxemb.aot.slices import tpu_slice

__all__ = ["Report", "compile_run", "tpu_slice"]
