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
    kept, before = HERE / "references" / "losses.npz", HERE / "references" / "losses.before"
    kept.rename(before)  # until all is made anew
    os.environ["JAXEMB_FREEZE"] = "1"
    files = [*(HERE / f"test_{name}_sentence_transformers.py" for name in FILES), HERE / "test_prototypes_torch.py"]
    code = pytest.main(["-q", "-m", "slow", "-k", "live", *map(str, files)])
    before.replace(kept) if code else before.unlink()
    sys.exit(code)
