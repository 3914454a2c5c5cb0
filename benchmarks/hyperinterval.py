"""Steps of HyperInterval against its official PyTorch code, on Split MNIST's setting: MLP 784-400-400-2 from 75-75.

A run is 20 steps of a task, batches of 128, in f32, with the bounds, the regulariser and Adam over the hypernetwork's
36 million weights; nothing is validated or logged. The official code is read from a copy that the reader has made:

    git clone https://github.com/gmum/HyperInterval COPY
    python -m venv PEER && PEER/bin/pip install hypnettorch==0.0.4 'torch<2.13' 'numpy<2' matplotlib pandas
    python -m benchmarks.hyperinterval --official COPY --python PEER/bin/python

It needs an environment of its own, as newer PyTorch has no named tensors.

Cases are the first task, without old ones, and the last, which holds four.
"""

import argparse
import os
import sys

import numpy as np

from benchmarks import harness

CASES = {"first": 0, "last": 4}
TASKS, STEPS, BATCH, EMBEDDING, HIDDEN, TARGET = 5, 20, 128, 72, (75, 75), (784, 400, 400)
GAMMA, BETA, KAPPA = 1.0, 0.01, 0.5
WEIGHTS = 784 * 400 + 400 + 400 * 400 + 400 + 400 * 2 + 2
HYPERNETWORK = EMBEDDING * 75 + 75 + 75 * 75 + 75 + 75 * WEIGHTS + WEIGHTS
# Adam reads and writes the weights and both moments, and reads the gradient, which something has written.
LEAST_BYTES = 4 * HYPERNETWORK * (2 * 3 + 2)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Inputs in [0, 1], `[STEPS, BATCH, 784]`, and labels."""
    rng = np.random.default_rng(0)
    return rng.uniform(size=(STEPS, BATCH, TARGET[0])).astype(np.float32), rng.integers(0, 2, (STEPS, BATCH))


def ours(case: str) -> None:
    """Trains with jaxemb when told; the steps are a loop on the device, as in `continual.run_stream`."""
    import jax
    import optax

    from jaxemb.classifiers.linear import Classifier
    from jaxemb.compilation import enable_persistent_cache
    from jaxemb.encoders import Mlp
    from jaxemb.objectives import classification
    from jaxemb.train import begin_task, init_state, make_train_step
    from jaxemb.transforms import HyperIntervalConfig, Task, hyper_interval

    enable_persistent_cache()
    config = HyperIntervalConfig(tasks=TASKS, embed_dim=EMBEDDING, hidden=HIDDEN, gamma=GAMMA, beta=BETA, kappa=KAPPA)
    transform, objective, optimizer = hyper_interval(config), classification(), optax.adam(1e-3)
    keys = jax.random.split(jax.random.key(0))
    model = Classifier.init(keys[0], Mlp.init(keys[1], TARGET), TARGET[-1], 2)
    state = init_state(jax.random.key(0), model, optimizer, transform)
    state = begin_task(transform, objective, state, Task(CASES[case]))  # no steps given: the full gamma at once
    step = make_train_step(objective, optimizer, transform)
    inputs, labels = data()
    batches = {"input": jax.numpy.asarray(inputs), "label": jax.numpy.asarray(labels, np.int32)}

    def advance(state, batches):
        one = lambda i, state: step(state, jax.tree.map(lambda x: x[i], batches))[0]
        return jax.lax.fori_loop(0, STEPS, one, state)

    compiled = jax.jit(advance, donate_argnums=0).lower(state, batches).compile()

    def run():
        nonlocal state
        state = jax.block_until_ready(compiled(state, batches))
        return {"finite": float(state.finite)}

    harness.serve(run, {"steps": STEPS, "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes})


def peer(case: str, threads: int) -> None:
    """Trains with the official modules when told."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path.insert(0, os.environ["HYPERINTERVAL_OFFICIAL"])
    import torch
    from IntervalNets.hmlp_ibp_wo_nesting import HMLP_IBP
    from IntervalNets.interval_MLP import IntervalMLP
    from IntervalNets.interval_modules import parse_logits
    from loss_functions import IBP_Loss
    from Utils import hnet_middle_regularizer

    torch.set_num_threads(threads)
    number = CASES[case]
    target = IntervalMLP(
        n_in=TARGET[0], n_out=2, hidden_layers=TARGET[1:], no_weights=True, bn_track_stats=False, verbose=False
    )
    network = HMLP_IBP(
        target_shapes=target.param_shapes,
        cond_in_size=EMBEDDING,
        layers=HIDDEN,
        num_cond_embs=TASKS,
        verbose=False,
    )
    criterion = IBP_Loss()
    optimizer = torch.optim.Adam([*network.parameters(), *target.parameters()], lr=1e-3)
    held = hnet_middle_regularizer.get_current_targets(task_id=number, hnet=network, eps=GAMMA) if number else None
    inputs, labels = (torch.from_numpy(x) for x in data())

    def run():
        for x, y in zip(inputs, labels, strict=True):
            optimizer.zero_grad()
            lower, middle, upper, _ = network.forward(
                cond_id=number, return_extended_output=True, perturbated_eps=GAMMA
            )
            logits = target.forward(x=x, upper_weights=upper, middle_weights=middle, lower_weights=lower)
            low, mid, high = parse_logits(logits)
            loss = criterion(y_pred=mid, y=y, z_l=low, z_u=high, kappa=KAPPA)
            if number:
                reg = hnet_middle_regularizer.calc_fix_target_reg(
                    network, number, middle_targets=held, mnet=target, eps=GAMMA
                )
                loss = loss + BETA * reg / number
            loss.backward()
            optimizer.step()
        return {"loss": loss.item()}

    harness.serve(run, {"steps": STEPS})


def main() -> None:
    """Runs the cases and writes the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", help="a copy of github.com/gmum/HyperInterval")
    parser.add_argument("--python", help="an interpreter with hypnettorch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=CASES, help="only this case")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker == "jaxemb":
        return ours(args.case)
    if args.worker:
        if (other := os.environ["HYPERINTERVAL_PYTHON"]) != sys.executable:
            os.execv(other, [other, "-m", "benchmarks.hyperinterval", *sys.argv[1:]])
        return peer(args.case, args.threads)
    if not (args.official and args.python):
        parser.error("--official and --python are needed: see --help")
    for path in (args.official, args.python):
        if not os.path.exists(path):
            parser.error(f"there is no {path}: see --help")
    paths = {"HYPERINTERVAL_OFFICIAL": args.official, "HYPERINTERVAL_PYTHON": args.python}
    os.environ.update({name: os.path.abspath(path) for name, path in paths.items()})
    result = {"threads": args.threads, "weights": HYPERNETWORK, "least_bytes_per_step": LEAST_BYTES, "cases": {}}
    for case in [args.case] if args.case else CASES:
        outcome = harness.compare("benchmarks.hyperinterval", case, args.threads, args.rounds)
        for name in ("jaxemb", "peer"):
            seconds = outcome["median_seconds"][name] / STEPS
            outcome[name] |= {"seconds_per_step": seconds, "least_bytes_per_second": LEAST_BYTES / seconds}
        result["cases"][case] = outcome
        us, them = (1e3 * outcome[name]["seconds_per_step"] for name in ("jaxemb", "peer"))
        low, high = outcome["ratio_range"]
        print(
            f"{case:6s} {us:7.1f} ms a step against {them:7.1f}: ratio {outcome['ratio']:.2f} ({low:.2f} to {high:.2f})"
        )
    harness.save("hyperinterval", result)


if __name__ == "__main__":
    main()
