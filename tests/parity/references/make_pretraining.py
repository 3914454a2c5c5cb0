"""Writes pretraining.npz: losses and gradients of DefSent, DefSent+, masked language modelling, masked autoencoding by
sizes (SMAE) and Starbucks' SRL as its authors have it, of a tiny BERT, written with transformers' modules."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers
from storing import files, store

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef")
SIZES = {"vocab_size": 11, "num_hidden_layers": 2, "initializer_range": 0.3, "max_position_embeddings": 20}
SHAPES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
RNG = np.random.default_rng(0)
IDS = RNG.integers(5, 11, (3, 7))
MASK = np.arange(7) < np.array([[7], [4], [5]])
TARGETS = np.array([6, 8, 10])
ENTRIES = RNG.normal(size=(13, 16)).astype(np.float32)
SEEN, WHOLE = RNG.integers(5, 11, (2, 3, 7))
HIDDEN = RNG.random((3, 7)) < 0.4
DECODED = RNG.integers(5, 11, (3, 7))
HIDDEN_FROM_DECODER = RNG.random((3, 7)) < 0.5
CUT = ((1, 5), (2, 16))  # layers, dimensions


def saved(model, name: str) -> dict[str, np.ndarray]:
    with TemporaryDirectory() as directory:
        path = Path(directory)
        model.save_pretrained(path)
        (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
        return files(path, name)


def pooled(model, pooling: str) -> torch.Tensor:
    mask = torch.tensor(MASK, dtype=torch.float32)
    states = model.bert(torch.tensor(IDS), attention_mask=mask).last_hidden_state
    return states[:, 0] if pooling == "cls" else (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def defsent(model) -> torch.Tensor:
    for parameter in (*model.cls.predictions.parameters(), *model.bert.embeddings.parameters()):
        parameter.requires_grad_(False)
    return torch.nn.functional.cross_entropy(model.cls.predictions(pooled(model, "mean")), torch.tensor(TARGETS))


def defsent_plus(model) -> torch.Tensor:
    v = model.bert.pooler(pooled(model, "cls")[:, None])
    return torch.nn.functional.cross_entropy(v @ torch.tensor(ENTRIES).T, torch.tensor(TARGETS))


def masked_language_model(model) -> torch.Tensor:
    logits = model.cls.predictions(model.bert(torch.tensor(SEEN)).last_hidden_state)
    return torch.nn.functional.cross_entropy(logits[torch.tensor(HIDDEN)], torch.tensor(WHOLE[HIDDEN]))


def masked_autoencoder(model) -> torch.Tensor:
    """The transform reads d components only; its output at the first token takes the place of that token's embedding in
    front of a copy of the first layer."""
    head, first = model.cls.predictions, copy.deepcopy(model.bert.encoder.layer[0])
    states = model.bert(torch.tensor(SEEN), output_hidden_states=True).hidden_states
    embedded, losses = model.bert.embeddings(torch.tensor(DECODED)), []
    for n, d in CUT:
        dense = head.transform.dense
        h = torch.nn.functional.linear(states[n][..., :d], dense.weight[:, :d], dense.bias)
        h = head.transform.LayerNorm(torch.nn.functional.gelu(h))
        restored = first(torch.cat([h[:, :1], embedded[:, 1:]], dim=1))
        restored = restored[0] if isinstance(restored, tuple) else restored
        for logits, which in ((head.decoder(h), HIDDEN), (head(restored), HIDDEN_FROM_DECODER)):
            losses.append(torch.nn.functional.cross_entropy(logits[torch.tensor(which)], torch.tensor(WHOLE[which])))
    return sum(losses) / len(losses)


def starbucks(model) -> torch.Tensor:
    """In-batch negatives of every size, and 0.3 times the divergence of the first d components from the full model's,
    without temperature, whose gradient reaches both, for the texts of both columns together."""
    cross_entropy, divergence = torch.nn.functional.cross_entropy, torch.nn.functional.kl_div
    at_layers = [model.bert(torch.tensor(x), output_hidden_states=True).hidden_states for x in (SEEN, WHOLE)]
    at = lambda n, d: [states[n].mean(dim=1)[:, :d] for states in at_layers]
    total = torch.zeros(())
    for n, d in CUT:
        query, document = (torch.nn.functional.normalize(x, dim=1) for x in at(n, d))
        total = total + cross_entropy(20 * query @ document.T, torch.arange(len(query)))
        if (n, d) != CUT[-1]:
            student, teacher = (torch.cat(at(layer, d)) for layer in (n, CUT[-1][0]))
            kl = divergence(student.log_softmax(dim=1), teacher.softmax(dim=1), reduction="batchmean")
            total = total + 0.3 * kl
    return total


def values() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**SIZES, **SHAPES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    result = saved(model, "model") | {"ids": IDS, "mask": MASK, "targets": TARGETS, "entries": ENTRIES}
    result |= {"seen": SEEN, "whole": WHOLE, "hidden": HIDDEN}
    result |= {"decoded": DECODED, "hidden_from_decoder": HIDDEN_FROM_DECODER}
    losses = (masked_language_model, masked_autoencoder, starbucks, defsent_plus, defsent)
    for loss_of in losses:  # the last freezes parameters
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        result[f"{loss_of.__name__}/loss"] = loss.detach().numpy()
        gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None and p.requires_grad}
        result |= {f"{loss_of.__name__}/gradient/{name}": gradient.copy() for name, gradient in gradients.items()}
    return result


if __name__ == "__main__":
    store(__file__, values())
