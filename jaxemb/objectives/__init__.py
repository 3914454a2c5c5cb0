"""What stands between a batch and a loss: `(model, batch, key) -> (losses [N], outputs)`."""

from jaxemb.objectives.columns import Objective, on_columns

__all__ = ["Objective", "on_columns"]
