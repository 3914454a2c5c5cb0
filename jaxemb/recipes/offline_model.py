"""all-MiniLM-L6-v2, the model that commands use when none is named."""

from jaxemb.checkpoints.hub import Found, locate

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


def default_model() -> Found:
    """all-MiniLM-L6-v2 from the hub if that answers, else from the installed package, else from the hub's cache.

    Raises:
      FileNotFoundError: if it is in none of these; says how to get it.
    """
    return locate(HUB_ID)
