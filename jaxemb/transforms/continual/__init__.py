"""Learning task after task."""
