"""Matryoshka and adaptive layers against sentence-transformers: loss and gradients of all parameters of a tiny BERT."""

import jax
import numpy as np
import pytest

from jaxemb.checkpoints import save_weights
from jaxemb.data import pad
from jaxemb.losses import info_nce
from jaxemb.objectives import adaptive_layers, matryoshka, on_columns
from jaxemb.sentence_embedder import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
Transformer = pytest.importorskip("sentence_transformers.base.modules").Transformer
reference = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

pytestmark = pytest.mark.slow

_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef")
QUERIES, DOCUMENTS = ["a b", "c", "d e f a"], ["a", "c c b", "f e"]
DIMS = (16, 8, 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same model there and here."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "bert"
    config = transformers.BertConfig(
        vocab_size=len(_WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.3,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(_WORDS) + "\n")
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    encoder = Transformer(str(path), max_seq_length=10)
    model = SentenceTransformer(modules=[encoder, modules.Pooling(16, "mean")], device="cpu")
    model.save(str(path.with_name("model")), create_model_card=False)
    return model.eval(), load(path.with_name("model"))


BASE = on_columns(info_nce, "query", "document")
CASES = {
    "matryoshka": (
        lambda model, loss: reference.MatryoshkaLoss(model, loss, DIMS, [1.0, 0.5, 2.0]),
        matryoshka(BASE, DIMS, [1.0, 0.5, 2.0]),
    ),
    **{
        f"adaptive-{weighting}": (
            lambda model, loss, weighting=weighting: reference.AdaptiveLayerLoss(
                model,
                loss,
                -1,
                last_layer_weight=0.5,
                prior_layers_weight=2.0,
                kl_div_weight=0.7,
                layer_weighting=weighting,
            ),
            adaptive_layers(
                BASE,
                range(3),
                last_weight=0.5,
                prior_weight=2.0,
                kl_weight=0.7,
                kl_temperature=0.3,
                layer_weighting=weighting,
            ),
        )
        for weighting in ("uniform", "log", "linear")
    },
    "2d": (
        lambda model, loss: reference.Matryoshka2dLoss(model, loss, DIMS, n_layers_per_step=-1, n_dims_per_step=-1),
        adaptive_layers(matryoshka(BASE, DIMS), range(3), kl_temperature=0.3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients(models, name):
    (theirs, ours), (make, objective) = models, CASES[name]
    loss = make(theirs, reference.MultipleNegativesRankingLoss(theirs, scale=20.0))
    theirs.zero_grad()
    expected = loss([theirs.preprocess(QUERIES), theirs.preprocess(DOCUMENTS)], None)
    expected.backward()

    columns = {"query": QUERIES, "document": DOCUMENTS}
    batch = {column: pad(ours.tokenizer(texts, 10), length=8) for column, texts in columns.items()}
    batch["id"] = np.arange(3)
    mean_loss = lambda model: objective(model, batch, None)[0].mean()
    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(ours.model)

    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    # A gradient has the model's structure, and so comes out under the checkpoint's names.
    found = save_weights(gradient.encoder, ours.format.encoder)
    parameters = {n: p for n, p in theirs[0].auto_model.named_parameters() if not n.startswith("pooler.")}
    assert parameters.keys() <= found.keys()
    for key, parameter in parameters.items():
        np.testing.assert_allclose(found[key], parameter.grad.numpy(), atol=1e-5, rtol=1e-4, err_msg=key)
