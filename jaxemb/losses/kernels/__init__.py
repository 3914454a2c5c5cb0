"""Ways of computing `jaxemb.losses.reductions.reduced` that measure better, in reverse mode, than its definition."""
