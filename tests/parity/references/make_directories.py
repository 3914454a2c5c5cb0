"""Writes directories.npz: model directories of sentence-transformers with all kinds of modules, and their vectors; and
the losses and gradients of its Matryoshka objectives."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer import losses, modules
from storing import files, store

import jaxemb

TEXTS = ["a", "b c a d", "e f", "c c c a b e f d e a b c"]
QUERIES, DOCUMENTS = ["a b", "c", "d e f a"], ["a", "c c b", "f e"]
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef")
DIMS = (8, 4, 3)
POOLINGS = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean",
    "lasttoken": "lasttoken",
    "cls+mean": ("cls", "mean"),
    "mean+cls": ("mean", "cls"),
}
ACTIVATIONS = (torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU(), torch.nn.Sigmoid())


def tiny_bert(path: Path) -> Transformer:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return Transformer(str(path), max_seq_length=10)


def heads(activation) -> list:
    norm = modules.LayerNorm(6)
    with torch.no_grad():
        norm.norm.weight.normal_()
        norm.norm.bias.normal_()
    first = Dense(8, 6, activation_function=activation)
    return [first, norm, Dense(6, 5, bias=False, activation_function=activation), Normalize()]


def kept(model: SentenceTransformer, name: str, whole: bool = False) -> dict[str, np.ndarray]:
    """The directory, its encoder's weights and tokenizer only if `whole`, and the vectors of `TEXTS`."""
    with TemporaryDirectory() as directory:
        model.save(directory, create_model_card=False)
        found = files(Path(directory), name)
    shared = [f"files/{name}/{file}" for file in ("model.safetensors", "vocab.txt", "tokenizer.json")]
    found = found if whole else {path: array for path, array in found.items() if path not in shared}
    return found | {f"{name}/vectors": model.encode(TEXTS), f"{name}/truncated": truncated(model)}


def truncated(model: SentenceTransformer) -> np.ndarray:
    """Vectors of what jaxemb makes of the model at two layers and three components, written there and read here."""
    with TemporaryDirectory() as whole, TemporaryDirectory() as small:
        model.save(whole, create_model_card=False)
        jaxemb.load(whole).truncate(layers=2, dim=3).save(Path(small) / "model")
        return SentenceTransformer(str(Path(small) / "model"), device="cpu").encode(TEXTS, batch_size=1)


def of_matryoshka(encoder: Transformer) -> dict[str, np.ndarray]:
    """Losses and gradients of the columns `QUERIES` and `DOCUMENTS`."""
    layers = {"last_layer_weight": 0.5, "prior_layers_weight": 2.0, "kl_div_weight": 0.7}
    cases = {
        "matryoshka": lambda m, loss: losses.MatryoshkaLoss(m, loss, DIMS, [1.0, 0.5, 2.0]),
        **{
            f"adaptive-{weighting}": lambda m, loss, weighting=weighting: losses.AdaptiveLayerLoss(
                m, loss, -1, layer_weighting=weighting, **layers
            )
            for weighting in ("uniform", "log", "linear")
        },
        "2d": lambda m, loss: losses.Matryoshka2dLoss(m, loss, DIMS, n_layers_per_step=-1, n_dims_per_step=-1),
    }
    result = {}
    for name, make in cases.items():
        model = SentenceTransformer(modules=[copy.deepcopy(encoder), modules.Pooling(8, "mean")], device="cpu").eval()
        loss = make(model, losses.MultipleNegativesRankingLoss(model, scale=20.0))
        value = loss([model.preprocess(QUERIES), model.preprocess(DOCUMENTS)], None)
        value.backward()
        result[f"{name}/loss"] = value.detach().numpy()
        parameters = model[0].auto_model.named_parameters()
        result |= {f"{name}/gradient/{n}": p.grad.numpy() for n, p in parameters if p.grad is not None}
    return result


def values() -> dict[str, np.ndarray]:
    with TemporaryDirectory() as directory:
        encoder = tiny_bert(Path(directory) / "bert")
        make = lambda *parts, **options: SentenceTransformer(modules=[encoder, *parts], device="cpu", **options)
        result = kept(make(modules.Pooling(8, "mean")), "mean", whole=True)
        for name, pooling in POOLINGS.items():
            if name != "mean":
                result |= kept(make(modules.Pooling(8, pooling)), name)
        options = {"prompts": {"query": "a b ", "document": ""}, "default_prompt_name": "document"}
        for activation in ACTIVATIONS:
            name = f"heads, {type(activation).__name__}"
            parts = (modules.Pooling(8), *heads(activation))
            result |= kept(make(*parts, similarity_fn_name="dot", **options), name)
        return result | of_matryoshka(encoder)


if __name__ == "__main__":
    store(__file__, values())
