"""Writes avalanche.npz: what Avalanche's plugins do on a small case. Run where `avalanche-lib` is installed.

Three tasks of 8 records with 3 values and 4 classes; a linear model, SGD in the order of the data, batches of 1 (where
the gradient of a batch, whose square Avalanche takes, is that of a record) for EWC, and of 4 for the others.
"""

from pathlib import Path

import numpy as np
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.plugins import EWCPlugin, LwFPlugin, SynapticIntelligencePlugin
from avalanche.training.templates import SupervisedTemplate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 8, 3)).astype(np.float32)
Y = np.stack([RNG.permutation(np.arange(8) % 2), 2 + RNG.permutation(np.arange(8) % 2), np.arange(8) % 2])
W, B = RNG.normal(size=(3, 4)).astype(np.float32), RNG.normal(size=4).astype(np.float32)


extract_weights = SynapticIntelligencePlugin.extract_weights


def extract_copies(model, target, excluded_parameters):
    """On a CPU, 0.6.0 keeps views of the weights: old ones equal new ones, and every importance is 0."""
    extract_weights(model, target, excluded_parameters)
    for data in target.values():
        data.data = data.data.clone()


SynapticIntelligencePlugin.extract_weights = staticmethod(extract_copies)


def trained(plugin, batch, rate):
    model = torch.nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(W.T))
        model.bias.copy_(torch.tensor(B))
    sets = [(torch.tensor(x), torch.tensor(y)) for x, y in zip(X, Y, strict=True)]
    strategy = SupervisedTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=2,
        plugins=[plugin],
        evaluator=None,
    )
    states = []
    for experience in tensors_benchmark(sets, sets, task_labels=[0, 0, 0], complete_test_set_only=False).train_stream:
        strategy.train(experience, shuffle=False, num_workers=0)
        states.append(np.concatenate([model.weight.detach().numpy().T, model.bias.detach().numpy()[None]]))
    return np.stack(states)


if __name__ == "__main__":
    results = {"x": X, "y": Y, "w": W, "b": B}
    for mode, gamma in (("separate", None), ("online", 0.5)):
        results[f"ewc_{mode}"] = trained(EWCPlugin(2.0, mode=mode, decay_factor=gamma), 1, 0.05)
    results["si"] = trained(SynapticIntelligencePlugin(si_lambda=1e3, eps=300.0), 4, 0.05)
    results["lwf"] = trained(LwFPlugin(alpha=1.5, temperature=2), 4, 0.05)
    np.savez(Path(__file__).with_name("avalanche.npz"), **results)
