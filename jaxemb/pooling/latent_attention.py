"""NV-Embed's pooling: every token looks itself up in a trained dictionary, then comes the mean."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import checked, size
from jaxemb.nn import CrossAttention, Linear, Norm
from jaxemb.pooling.base import Pooling
from jaxemb.pooling.plain import Mean
from jaxemb.pooling.without_prompt import WithoutPrompt
from jaxemb.types import Tokens


@nnx.dataclass
class LatentAttention(Pooling):
    """The mean of what tokens make of r latent vectors z, by `jaxemb.nn.CrossAttention`: tokens ask, latents answer.

    It is the form of the published weights, with projections, norms, `1 / sqrt(e)` and a gated feed-forward, of which
    the equations of the paper have none. Use it with `jaxemb.load(..., causal=False)`.

    Attributes:
      latents: z, `[r, C]`.
      block: its queries are states, its context is z.
      mean: what is made of the tokens then.

    References:
      Lee et al. 2024 (NV-Embed), arXiv 2405.17428; the code beside its weights.
    """

    latents: jax.Array = nnx.data()
    block: CrossAttention = nnx.data()
    mean: Pooling = nnx.data(default_factory=WithoutPrompt)

    @classmethod
    @checked(dim=size, latents=size, heads=size, head_dim=size, latent_dim=size)
    def init(
        cls,
        key: jax.Array,
        dim: int,
        *,
        latents: int = 512,
        heads: int = 8,
        head_dim: int | None = None,
        latent_dim: int | None = None,
    ) -> "LatentAttention":
        """New weights for states of `dim` dimensions; latents are standard normal.

        Args:
          key: random key.
          dim: D.
          latents: r.
          heads, head_dim: H and e; e is D if None, as in the published model, so that H e is 8 D there.
          latent_dim: C; D if None.
        """
        key_latents, key_block = jax.random.split(key)
        block = CrossAttention.init(key_block, dim, heads=heads, head_dim=head_dim or dim, context_dim=latent_dim)
        return cls(jax.random.normal(key_latents, (latents, latent_dim or dim)), block)

    @classmethod
    def of_tensors(
        cls, tensors: Mapping[str, jax.Array], *, heads: int = 8, prefix: str = "latent_attention_model."
    ) -> "LatentAttention":
        """That of a checkpoint of NV-Embed, by the names of its tensors.

        Args:
          tensors: of the checkpoint, `[out, in]` as PyTorch has them; others than the pooling's are not read.
          heads: H, which tensors do not tell.
          prefix: of the names.

        Raises:
          ValueError: for tensors that are missing, or a number of heads that does not divide their width.
        """
        attend, feed = f"{prefix}cross_attend_blocks.0.", f"{prefix}cross_attend_blocks.1."
        norms = {attend: ("norm", "norm_context"), feed: ("norm",)}
        linears = {attend: ("fn.to_q", "fn.to_kv", "fn.to_out"), feed: ("fn.net.0", "fn.net.2")}
        wanted = [f"{prefix}latents", *(f"{at}{name}.weight" for at in norms for name in norms[at] + linears[at])]
        wanted += [f"{at}{name}.bias" for at in norms for name in norms[at]]
        wanted += [f"{feed}{name}.bias" for name in linears[feed]]
        if missing := [name for name in wanted if name not in tensors]:
            raise ValueError(f"tensors must be those of an NV-Embed checkpoint; missing are {', '.join(missing)}")
        of = {name: jnp.asarray(tensors[name]) for name in wanted}
        norm = lambda name: Norm(of[f"{name}.weight"], of[f"{name}.bias"], eps=1e-5)
        linear = lambda weight, bias=None: Linear(weight.T, bias)
        key, value = jnp.split(of[f"{attend}fn.to_kv.weight"], 2)
        (up, gate), biases = (jnp.split(of[f"{feed}fn.net.0.{kind}"], 2) for kind in ("weight", "bias"))
        if heads < 1 or len(key) % heads:
            raise ValueError(f"heads must divide {len(key)}, the width of the keys; got {heads}")
        block = CrossAttention(
            query_norm=norm(f"{attend}norm"),
            context_norm=norm(f"{attend}norm_context"),
            query=linear(of[f"{attend}fn.to_q.weight"]),
            key=linear(key),
            value=linear(value),
            out=linear(of[f"{attend}fn.to_out.weight"]),
            mlp_norm=norm(f"{feed}norm"),
            up=linear(up, biases[0]),
            gate=linear(gate, biases[1]),
            down=linear(of[f"{feed}fn.net.2.weight"], of[f"{feed}fn.net.2.bias"]),
            heads=heads,
        )
        return cls(of[f"{prefix}latents"], block)

    def of_tokens(self, states: jax.Array) -> jax.Array:
        """What is averaged, `[B, T, D]`, of the states."""
        return self.block(states, self.block.read(self.latents.astype(states.dtype)))

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        return self.mean(self.of_tokens(states), tokens)

    @property
    def reads_prompt(self) -> bool:
        return self.mean.reads_prompt


@nnx.dataclass
class TokenAttention(Pooling):
    """The same block with the text's own tokens in place of latents: the control that NV-Embed compares with."""

    block: CrossAttention = nnx.data()
    mean: Pooling = nnx.data(default_factory=lambda: WithoutPrompt(Mean()))

    @classmethod
    @checked(dim=size, heads=size, head_dim=size)
    def init(cls, key: jax.Array, dim: int, *, heads: int = 8, head_dim: int | None = None) -> "TokenAttention":
        """New weights for states of `dim` dimensions; a head is as wide if `head_dim` is None."""
        return cls(CrossAttention.init(key, dim, heads=heads, head_dim=head_dim or dim))

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        segments = jnp.asarray(tokens.segment_ids)
        seen = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
        return self.mean(self.block(states, self.block.read(states), seen), tokens)

    @property
    def reads_prompt(self) -> bool:
        return self.mean.reads_prompt
