"""Published recipes as run configs: `jaxemb train experiments/recipes/NAME.py`."""
