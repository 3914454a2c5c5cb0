"""Makes `references/losses.npz`: runs the comparisons with the libraries themselves, and keeps what these give.

    python tests/parity/make_losses.py

Made with torch 2.13, sentence-transformers 6.2, open_clip 3.3 and pytorch-metric-learning 2.9.
"""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ("catalogue", "losses", "late_interaction", "ranking", "sparse")

if __name__ == "__main__":
    (HERE / "references").mkdir(exist_ok=True)
    (HERE / "references" / "losses.npz").unlink(missing_ok=True)
    os.environ["JAXEMB_FREEZE"] = "1"
    files = [*(HERE / f"test_{name}_sentence_transformers.py" for name in FILES), HERE / "test_prototypes_torch.py"]
    sys.exit(pytest.main(["-q", "-m", "slow", "-k", "live", *map(str, files)]))
