"""GGUF files are read as transformers reads them."""

import jax
import numpy as np
import pytest
from gguf_files import CONFIGS, byte_pairs, sentence_pieces, tensors_of, write_gguf

import jaxemb
from jaxemb.types import Tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")
pytest.importorskip("accelerate")  # with which transformers reads such files

pytestmark = pytest.mark.slow

_states = jax.jit(lambda model, tokens: model(tokens))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "qwen3"])  # there its heads have 128 dimensions
def test_states_are_those_of_transformers(name, tmp_path):
    tokenizer = sentence_pieces if name == "llama" else byte_pairs
    write_gguf(tmp_path / "model.gguf", name, tensors_of(CONFIGS[name]), more=tokenizer)
    theirs = transformers.AutoModel.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours = jaxemb.load(tmp_path / "model.gguf")
    ids = np.random.default_rng(0).integers(3, 300, (2, 12))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).last_hidden_state.numpy()
    found = _states(ours.model.encoder, Tokens.from_mask(ids, np.ones_like(ids)))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if name == "llama":
        texts = ["cat at a cat", "a☃ cat", "ttt"]
        tokens = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
        expected = tokens(texts, add_special_tokens=False)["input_ids"]
        assert [found.tolist() for found in ours.tokenizer.encode(texts, special_tokens=False).ids] == expected
