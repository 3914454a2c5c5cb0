import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from jaxemb.classifiers import nmc_predict, slda_init, slda_logits, slda_update

RNG = np.random.default_rng(0)
LABELS = np.resize(np.arange(3, dtype=np.int32), 90)
MIX = RNG.normal(size=(4, 4))
FEATURES = ((RNG.normal(size=(90, 4)) + 1.5 * np.eye(4)[LABELS]) @ MIX).astype(np.float32)


def test_parity_with_scikit_learn():
    state = slda_init(5, 4)
    for rows in np.split(RNG.permutation(90), [7, 30]):
        state = slda_update(state, FEATURES[rows], LABELS[rows])
    x = (RNG.normal(size=(50, 4)) @ MIX).astype(np.float32)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(FEATURES, LABELS)
    logits = np.array(slda_logits(state, x, 0.1))
    expected = oracle.decision_function(x)
    centred = lambda z: z - z.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(centred(logits[:, :3]), centred(expected), rtol=1e-3, atol=1e-4)
    assert np.isneginf(logits[:, 3:]).all()
    np.testing.assert_array_equal(np.asarray(slda_logits(state, x, 1.0)).argmax(axis=1), nmc_predict(state.classes, x))
    with pytest.raises(ValueError, match=r"shrinkage must be in \(0, 1\]; got 0"):
        slda_logits(state, x, 0)
    for scale in (1e25, 0):  # squares overflow, and there is no variance
        with pytest.raises(ValueError, match="features must have finite logits in float32"):
            slda_logits(slda_update(slda_init(5, 4), FEATURES * scale, LABELS), x)
