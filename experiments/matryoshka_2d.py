"""2D Matryoshka: one model to be cut to fewer layers, fewer dimensions, or both.

Li et al. 2024 (arXiv 2402.14776, version 1) train, beside the full size, a layer before the last and a length below the
full one, both drawn at every step, and draw the layer's embedding towards the last one's. Claimed is that such a model
can be cut in both directions, where Matryoshka can be cut in one. Their own table could not be read; the figures are
those that Zhuang et al. measured of 2D Matryoshka (github.com/ielab/Starbucks), with the code of sentence-transformers.

Here all-MiniLM-L6-v2 is fine-tuned. "As published" has the authors' lengths (powers of two from 8 on), their loss
(AnglE, on "nli"; see `sizes`), and a teacher into which the gradient flows; one arm has a detached one. Theirs is
BERT-base on MultiNLI and SNLI, which are not among the data. Arms share pairs, order, steps and the learning rate,
which was chosen for training at full size (by `stsb`): the methods are not tuned. A seed draws the contradictions, the
order of the pairs, dropout, and the sizes of a step.

    python -m experiments.matryoshka_2d --preset small
    jaxemb train experiments/recipes/sizes.py --out runs/2d --set method=2d --set data=all-nli.parquet
"""

from experiments import sizes
from experiments.lib import suite
from experiments.lib.suite import Claim, Experiment, Reported
from experiments.sizes import PAPER, Arm, Preset, powers
from jaxemb.objectives import matryoshka, matryoshka_2d

PLAIN, ONE, TWO, DETACHED = "full size only, cut", "Matryoshka", "2D Matryoshka, as published", "its teacher detached"
THEIRS = "(BERT-base, 5 smaller sizes)"
EXPERIMENT = Experiment(
    name="matryoshka_2d",
    about=__doc__,
    presets={
        "smoke": Preset(datasets=("nli",), seeds=1, steps=1, batch_size=8, sizes=((1, 32), (6, 384)), tests=24),
        "small": Preset(datasets=("nli",), seeds=3),
        "paper": Preset(datasets=("nli", "sts"), seeds=5, **PAPER),
    },
    arms={
        PLAIN: Arm(lambda of_one, p: of_one, paper=Reported(f"62.1; full 81.0 {THEIRS}", confirmed=True)),
        ONE: Arm(lambda of_one, p: matryoshka(of_one, (*powers(p.sizes), p.sizes[-1][1]))),
        TWO: Arm(
            lambda of_one, p: matryoshka_2d(of_one, powers(p.sizes), detach_teacher=False),
            paper=Reported(f"72.1; full 79.6 {THEIRS}", confirmed=True),
        ),
        DETACHED: Arm(lambda of_one, p: matryoshka_2d(of_one, powers(p.sizes))),
    },
    data=sizes.data,
    measure=sizes.measure,
    measures=sizes.MEASURES,
    claims=(
        Claim("Cut in both directions, it does better than Matryoshka", TWO, ">", ONE),
        Claim("also at the smallest size", TWO, ">", ONE, "smallest"),
        Claim("and over all layers and dimensions", TWO, ">", ONE, "every"),
        Claim(
            "and better than training of the full size only", TWO, ">", PLAIN, paper=Reported("+10.1 (BERT-base)", True)
        ),
        Claim("It costs quality at full size", TWO, "<", PLAIN, "full", paper=Reported("-1.3 (BERT-base)", True)),
        Claim("less where the teacher is detached", DETACHED, ">", TWO, "full"),
        Claim("Matryoshka does not help a model that is cut in layers", ONE, "≈", PLAIN, margin=1.0),
    ),
    describe=sizes.describe,
    plots=sizes.heat_maps,
)

if __name__ == "__main__":
    suite.main(EXPERIMENT)
