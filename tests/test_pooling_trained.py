"""Poolings with weights: worked numbers of the specifications, PyTorch, and what must not matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_model

from jaxemb import pooling
from jaxemb.data import marked, pack, pad
from jaxemb.nn import CrossAttention, Linear, Norm
from jaxemb.pooling import AllLayers, LatentAttention, LatentQueries, Mean, TokenAttention, WithoutPrompt
from jaxemb.types import Tokens

_run = jax.jit(lambda pooling, states, tokens: pooling(states, tokens))
_set = jax.jit(lambda pooling, vectors: pooling.of_vectors(vectors))


def identity_block() -> CrossAttention:
    """d = e = 2, one head, identity projections and a feed-forward of zeros: the hand cases."""
    linear = lambda bias: Linear(jnp.eye(2), jnp.zeros(2) if bias else None)
    zero = Linear(jnp.zeros((2, 2)), jnp.zeros(2))
    norm = Norm.init(2, eps=1e-5)
    attention = [linear(False) for _ in range(4)]
    return CrossAttention(norm, norm, *attention, norm, zero, zero, zero, heads=1)


LATENTS = jnp.array([[1.0, -1.0], [-1.0, 1.0]])


def states_of(tokens, dim=6):
    angle = (np.asarray(tokens.ids)[..., None] + 1) * np.arange(1, dim + 1)
    return np.sin(angle).astype(np.float32)


def test_latent_attention_by_hand():
    tokens = pad([np.arange(1)], length=1)
    found = _run(LatentAttention(LATENTS, identity_block()), np.float32([[[3, 1]]]), tokens)[0]
    np.testing.assert_allclose(found, [3.888378, 0.111622], atol=2e-5)
    np.testing.assert_allclose(found / np.linalg.norm(found), [0.999588, 0.028695], rtol=1e-4, atol=1e-5)


def test_latent_queries_by_hand():
    found = _set(LatentQueries(LATENTS, identity_block()), np.float32([[[3, 1], [1, 2], [0, 4]]]))
    np.testing.assert_allclose(found, [[-0.077009, 0.077009]], atol=2e-5)


def test_the_published_size_of_latent_attention():
    block = jax.eval_shape(lambda: LatentAttention.init(jax.random.key(0), 4096))
    assert sum(leaf.size for leaf in jax.tree.leaves(block)) == 740_356_096
    block = jax.eval_shape(lambda: LatentQueries.init(jax.random.key(0), 4096))
    assert sum(leaf.size for leaf in jax.tree.leaves(block)) == 1_278_275_584


def drawn(make):
    """What `make` would give, with all its arrays drawn: norms and biases are not those of the beginning."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.2, 0.5, leaf.shape).astype(np.float32), jax.eval_shape(make))


def in_torch(block, x, context, seen=None):
    """The block by PyTorch's own layer norm, attention and gelu."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    t = lambda a: torch.tensor(np.asarray(a))
    norm = lambda n, a: f.layer_norm(a, a.shape[-1:], t(n.weight), t(n.bias), 1e-5)
    linear = lambda of, a: f.linear(a, t(of.kernel).T, None if of.bias is None else t(of.bias))
    heads = lambda a: a.unflatten(-1, (block.heads, -1)).transpose(-2, -3)
    x, context = t(x), norm(block.context_norm, t(context))
    q, k, v = (
        heads(linear(block.query, norm(block.query_norm, x))),
        *map(heads, map(linear, (block.key, block.value), (context,) * 2)),
    )
    mask = None if seen is None else t(seen)[..., None, :, :]
    y = x + linear(block.out, f.scaled_dot_product_attention(q, k, v, mask).transpose(-2, -3).flatten(-2))
    normed = norm(block.mlp_norm, y)
    return (y + linear(block.down, linear(block.up, normed) * f.gelu(linear(block.gate, normed)))).numpy()


KEY, SIZES = jax.random.key(0), {"heads": 3, "head_dim": 5}
ALL = {
    "latent attention": drawn(lambda: LatentAttention.init(KEY, 6, latents=4, latent_dim=7, **SIZES)),
    "token attention": drawn(lambda: TokenAttention.init(KEY, 6, **SIZES)),
    "latent queries": drawn(lambda: LatentQueries.init(KEY, 6, latents=4, **SIZES)),
}


@pytest.mark.parametrize("name", ALL)
def test_equals_pytorch(name):
    pool = ALL[name]
    tokens = pad([np.arange(5), np.arange(3, 6)], length=5)
    states, mask = states_of(tokens), np.asarray(tokens.mask)
    if name == "latent queries":
        latents = np.broadcast_to(pool.latents, (2, 4, 6))
        expected = in_torch(pool.block, latents, states, np.broadcast_to(mask[:, None], (2, 4, 5))).mean(1)
    else:
        seen = np.broadcast_to(mask[:, None], (2, 5, 5))
        context = states if name == "token attention" else np.asarray(pool.latents)[None]
        of_tokens = in_torch(pool.block, states, context, seen if name == "token attention" else None)
        expected = (of_tokens * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(_run(pool, states, tokens), expected, rtol=1e-4, atol=1e-5)


def test_tensors_of_nv_embed():
    """By their published names, computed in PyTorch as the published code does it: keys first, gates last."""
    torch = pytest.importorskip("torch")
    f, attend, feed = torch.nn.functional, "x.cross_attend_blocks.0.", "x.cross_attend_blocks.1."
    shapes = {"x.latents": (5, 6), f"{attend}fn.to_q.weight": (8, 6), f"{attend}fn.to_kv.weight": (16, 6)}
    shapes |= {f"{attend}fn.to_out.weight": (6, 8), f"{feed}fn.net.0.weight": (48, 6), f"{feed}fn.net.0.bias": (48,)}
    shapes |= {f"{feed}fn.net.2.weight": (6, 24), f"{feed}fn.net.2.bias": (6,)}
    norms = [f"{attend}norm", f"{attend}norm_context", f"{feed}norm"]
    shapes |= {f"{name}.{kind}": (6,) for name in norms for kind in ("weight", "bias")}
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    t = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    norm = lambda name, x: f.layer_norm(x, (6,), t[f"{name}.weight"], t[f"{name}.bias"])
    tokens = pad([np.arange(4)], length=4)
    x = torch.tensor(states_of(tokens))
    k, v = f.linear(norm(norms[1], t["x.latents"]), t[f"{attend}fn.to_kv.weight"]).chunk(2, dim=-1)
    q = f.linear(norm(norms[0], x), t[f"{attend}fn.to_q.weight"])
    heads = lambda a: a.reshape(-1, a.shape[-2], 2, 4).transpose(1, 2)
    out = f.scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).reshape(1, 4, 8)
    y = x + f.linear(out, t[f"{attend}fn.to_out.weight"])
    value, gate = f.linear(norm(norms[2], y), t[f"{feed}fn.net.0.weight"], t[f"{feed}fn.net.0.bias"]).chunk(2, dim=-1)
    y = y + f.linear(value * f.gelu(gate), t[f"{feed}fn.net.2.weight"], t[f"{feed}fn.net.2.bias"])
    found = _run(LatentAttention.of_tensors(tensors, heads=2, prefix="x."), states_of(tokens), tokens)
    np.testing.assert_allclose(found, y.mean(1), atol=1e-4)
    with pytest.raises(ValueError, match=r"missing are x\.latents"):
        LatentAttention.of_tensors({k: v for k, v in tensors.items() if k != "x.latents"}, prefix="x.")
    with pytest.raises(ValueError, match="heads must divide 8"):
        LatentAttention.of_tensors(tensors, heads=3, prefix="x.")


@pytest.mark.parametrize("name", ALL)
def test_packed_texts_and_padding_do_not_matter(name):
    texts = [np.arange(start, start + n) for start, n in ((0, 4), (7, 2), (2, 5), (9, 3))]
    alone, longer, packed = pad(texts, length=5), pad(texts, length=9), pack(texts, row_length=9, texts_per_row=4)
    found = [_run(ALL[name], states_of(tokens), tokens) for tokens in (alone, longer, packed)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4, atol=1e-5)
    assert np.ptp(found[0], axis=0).max() > 0.1


@pytest.mark.parametrize("name", ["latent attention", "latent queries"])
def test_the_order_of_latents_does_not_matter(name):
    tokens = pad([np.arange(5)], length=5)
    turned = dataclasses.replace(ALL[name], latents=ALL[name].latents[jnp.array([2, 0, 3, 1])])
    states = states_of(tokens)
    np.testing.assert_allclose(_run(turned, states, tokens), _run(ALL[name], states, tokens), rtol=1e-4, atol=1e-5)


def test_one_vector_leaves_queries_and_keys_without_gradient():
    """Model 2 of the study is a feed-forward: a softmax over one key is 1."""
    norms = jax.jit(lambda pool, x: jax.grad(lambda pool: jnp.sum(jnp.sin(pool.of_vectors(x))))(pool).block)
    for n in (1, 2):
        gradient = norms(ALL["latent queries"], np.random.default_rng(0).normal(size=(2, n, 6)).astype(np.float32))
        sizes = [float(jnp.abs(linear.kernel).max()) for linear in (gradient.query, gradient.key)]
        assert (np.array(sizes) > 1e-4).all() if n > 1 else (np.array(sizes) < 1e-9).all()
        assert float(jnp.abs(gradient.value.kernel).max()) > 1e-4


@pytest.mark.parametrize("number", range(1, 6))
def test_designs(number):
    """What an embedder makes of each is what the pooling makes of all states at once."""
    causal = []

    def make():
        pool, is_causal = pooling.pooling_design(number, KEY, 16, 2, latents=3, heads=2, head_dim=4)
        causal.append(is_causal)
        return pool

    pool, causal = drawn(make), causal[0]
    assert causal == (number < 4)
    model = dataclasses.replace(tiny_model(causal=causal, norm_placement="pre", final_norm=True), pooling=pool)
    tokens = pack([np.arange(3, 8), np.arange(4, 7), np.arange(9, 15)], row_length=12)

    @jax.jit
    def both(model, tokens):
        states = model.encoder(tokens, all_states=True)[1:]
        return model(tokens), model.pooling(states if isinstance(model.pooling, AllLayers) else states[-1], tokens)

    found, expected = both(model, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (3, model.dim)
    if isinstance(pool, AllLayers):
        with pytest.raises(TypeError, match="reads all layers"):
            model.truncate(layers=1)
        with pytest.raises(ValueError, match="vectors must be of 9 layers"):
            dataclasses.replace(pool, layers=np.zeros((9, 16))).over_layers(np.zeros((2, 1, 16)))


def test_layers_are_a_set_but_for_what_is_added_to_them():
    pool = drawn(lambda: AllLayers.init(KEY, 6, 3, latents=2, **SIZES))
    over = jax.jit(lambda pool, x: pool.over_layers(x))
    x = np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32)
    plain = dataclasses.replace(pool, layers=np.zeros((3, 6), np.float32))
    np.testing.assert_allclose(over(plain, x[::-1]), over(plain, x), rtol=1e-4, atol=1e-6)
    assert np.abs(over(pool, x[::-1]) - over(pool, x)).max() > 1e-3


def test_an_unknown_design_is_refused():
    with pytest.raises(ValueError, match=r"number must be in 1\.\.5; got 6"):
        pooling.pooling_design(6, KEY, 4, 2)


@pytest.mark.parametrize("name", pooling.POOLINGS)
def test_prompts_that_are_not_pooled_are_those_of_sentence_transformers(name):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("sentence_transformers.models").Pooling(6, name, include_prompt=False)
    texts = [np.arange(n) for n in (7, 5)]
    tokens = marked(pad(texts, length=9), np.array([3, 3]))
    states = states_of(tokens)
    features = {"token_embeddings": torch.tensor(states), "attention_mask": torch.tensor(np.asarray(tokens.mask)).int()}
    expected = theirs({**features, "prompt_length": 3})["sentence_embedding"].numpy()
    found = _run(WithoutPrompt(pooling.POOLINGS[name]()), states, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_prompts_of_packed_texts_have_lengths_of_their_own():
    texts, lengths = [np.arange(4), np.arange(5, 8), np.arange(9, 14)], np.array([2, 0, 4])
    packed = marked(pack(texts, row_length=12, texts_per_row=4), lengths)
    np.testing.assert_array_equal(packed.prompt, np.asarray(_with_prompt(packed, lengths).prompt))
    rest = pad([text[n:] for text, n in zip(texts, lengths, strict=True)], length=4)
    found = _run(WithoutPrompt(), states_of(packed), packed)
    np.testing.assert_allclose(found, _run(Mean(), states_of(rest), rest), rtol=1e-4, atol=1e-6)
    kept = _run(WithoutPrompt(kept=1), states_of(packed), packed)
    rest = pad([text[max(n - 1, 0) :] for text, n in zip(texts, lengths, strict=True)], length=4)
    np.testing.assert_allclose(kept, _run(Mean(), states_of(rest), rest), rtol=1e-4, atol=1e-6)


_with_prompt = jax.jit(lambda tokens, lengths: Tokens.with_prompt(dataclasses.replace(tokens, prompt=None), lengths))


def test_a_prompt_that_is_not_pooled_is_read():
    model = dataclasses.replace(tiny_model(), pooling=WithoutPrompt())
    run = jax.jit(functools.partial(lambda model, tokens: model(tokens), model))
    same = marked(pad([np.array([3, 4, 5, 6]), np.array([8, 4, 5, 6])], length=4), np.array([1, 1]))
    found = run(same)
    assert np.abs(found[0] - found[1]).max() > 1e-4
