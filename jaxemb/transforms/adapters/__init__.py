"""A few new parameters beside a frozen model."""
