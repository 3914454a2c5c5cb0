"""Side-by-side measurements against peers: `python -m benchmarks.<name>`; results in `benchmarks/results/`."""
