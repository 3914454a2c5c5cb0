"""Makes hypernetworks.npz: what hypnettorch 0.0.4 (PyTorch) computes, in an environment that has it.

python make_hypernetworks.py
python make_hypernetworks.py --official DIRECTORY   # adds the boxes of a copy of github.com/gmum/HyperInterval
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from hypnettorch.hnets import HMLP, ChunkedHMLP
from hypnettorch.utils.hnet_regularizer import calc_fix_target_reg, get_current_targets

SHAPES, D, LAYERS, TASKS = [[3, 4], [3], [2, 3], [2]], 5, (6, 7), 3


def parameters(net, name):
    """Kernels `[in, out]` and biases in order, and the embeddings `[T, D]`."""
    values = [p.detach().numpy().copy() for p in net.unconditional_params if p.dim() < 3]
    layers = values[-2 * (len(LAYERS) + 1) :]
    made = {f"{name}/{i}": v.T if v.ndim == 2 else v for i, v in enumerate(layers)}
    return made | {f"{name}/embeddings": np.stack([p.detach().numpy() for p in net.conditional_params])}


def flat(weights):
    return torch.cat([w.reshape(-1) for w in weights]).detach().numpy()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--official")
    args = parser.parse_args()
    torch.manual_seed(0)
    made = {}

    net = HMLP(SHAPES, cond_in_size=D, layers=LAYERS, num_cond_embs=TASKS, verbose=False)
    made |= parameters(net, "plain")
    made["plain/weights"] = np.stack([flat(net(cond_id=t)) for t in range(TASKS)])
    targets = get_current_targets(2, net)
    with torch.no_grad():
        for p in net.unconditional_params:
            p.add_(0.1 * torch.randn_like(p))
    made |= parameters(net, "moved")
    made["moved/regulariser"] = calc_fix_target_reg(net, 2, targets=targets).detach().numpy()

    chunked = ChunkedHMLP(
        SHAPES, 9, chunk_emb_size=4, cond_in_size=D, layers=LAYERS, num_cond_embs=TASKS, verbose=False
    )
    for p in chunked.unconditional_params + chunked.conditional_params:
        torch.nn.init.normal_(p, std=0.5)
    shapes = {tuple(p.shape): p for p in chunked.unconditional_params}
    made |= parameters(chunked._hnet, "chunked") | {"chunked/chunks": shapes[3, 4].detach().numpy()}
    made["chunked/embeddings"] = np.stack([p.detach().numpy() for p in chunked.conditional_params])
    made["chunked/weights"] = np.stack([flat(chunked(cond_id=t)) for t in range(TASKS)])

    if args.official:
        sys.path.insert(0, args.official)
        from IntervalNets import hmlp_ibp_with_nesting, hmlp_ibp_wo_nesting

        for name, module in ("box", hmlp_ibp_wo_nesting), ("nested", hmlp_ibp_with_nesting):
            net = module.HMLP_IBP(SHAPES, cond_in_size=D, layers=LAYERS, num_cond_embs=TASKS, verbose=False)
            for logits in net._perturbated_eps_T if name == "box" else ():
                torch.nn.init.normal_(logits)
            made |= parameters(net, name)
            made[f"{name}/radius_logits"] = np.stack([p.detach().numpy() for p in net._perturbated_eps_T])
            forward = lambda t, net=net: net(cond_id=t, perturbated_eps=2.0, return_extended_output=True)[:3]
            made[f"{name}/weights"] = np.stack([np.stack([flat(w) for w in forward(t)]) for t in range(TASKS)])
    np.savez(Path(__file__).parent / "hypernetworks.npz", **made)


if __name__ == "__main__":
    main()
