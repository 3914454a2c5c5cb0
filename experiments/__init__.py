"""One file per published method: `python -m experiments.<name> --preset smoke|small|paper`."""
