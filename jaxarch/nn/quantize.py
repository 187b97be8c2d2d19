"""Vector quantisation with a codebook, trained or a moving average of the vectors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError
from jaxarch.nn import init
from jaxarch.nn.embedding import check_ids
from jaxarch.nn.module import Buffer, Module


class Quantized(NamedTuple):
    """The output of a quantiser.

    values: the nearest codes (B, H, W, C), with the gradient of the vectors they replace.
    loss: commitment, and without moving averages the codebook's loss.
    ids: the codes' indices (B, H * W), row by row.
    perplexity, usage: exp of the entropy of the codes in this batch; the fraction of codes that it uses.
    """

    values: Float[Array, "b h w c"]
    loss: Float[Array, ""]
    ids: Int[Array, "b n"]
    perplexity: Float[Array, ""]
    usage: Float[Array, ""]


class VectorQuantizer(Module):
    """Replaces each pixel's vector by the nearest of `codes` (van den Oord et al. 2017, arXiv:1711.00937).

    (B, H, W, dim) -> Quantized. Gradients pass straight through; `commitment` weighs the encoder's loss.

    ema: the codebook `embed` (codes, dim) is the moving average of the vectors assigned to each code (their
        appendix A.1): in train mode `cluster_size` and `embed_avg` decay by `decay` and take in the batch;
        `eps` smooths the counts. Without it the codebook is trained by its distance to the vectors.
    revive_below: in train mode codes whose cluster_size falls below it become vectors of the batch, which
        `revival` (codes,) in [0, 1) picks; 0 revives none.

    Raises:
        UsageError: revival without ema.
        DataError: in the call, in train mode, revival is asked for and `revival` not given.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        commitment: float = 0.25,
        ema: bool = True,
        decay: float = 0.99,
        eps: float = 1e-5,
        revive_below: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        if revive_below > 0 and not ema:
            raise UsageError("revive_below needs ema=True: without it there are no counts")
        self.codes, self.commitment, self.ema = codes, commitment, ema
        self.decay, self.eps, self.revive_below = decay, eps, revive_below
        self.use_running_average = False
        embed = init.uniform(1 / codes)(rngs.params(), (codes, dim))
        if ema:
            self.embed: nnx.Variable = Buffer(embed)
            self.cluster_size = Buffer(jnp.ones(codes, init.float_dtype()))
            self.embed_avg = Buffer(jnp.array(embed))
        else:
            self.embed = nnx.Param(embed)

    def __call__(
        self, x: Float[Array, "b h w c"], revival: Float[Array, " codes"] | None = None
    ) -> Quantized:
        embed, rows = self.embed[...], x.reshape(-1, x.shape[-1])
        fixed = jax.lax.stop_gradient(rows)
        distances = jnp.square(embed).sum(1) - 2 * fixed @ embed.T
        ids = distances.argmin(1)
        values = embed[ids]
        loss = self.commitment * jnp.square(rows - jax.lax.stop_gradient(values)).mean()
        if not self.ema:
            loss = loss + jnp.square(values - fixed).mean()
        one_hot = jax.nn.one_hot(ids, self.codes, dtype=rows.dtype)
        if self.ema and not self.use_running_average:
            self._update_codebook(fixed, one_hot, revival)
        frequency = one_hot.mean(0)
        perplexity = jnp.exp(-(frequency * jnp.log(frequency + 1e-10)).sum())
        usage = (frequency > 0).astype(rows.dtype).mean()
        straight_through = rows + jax.lax.stop_gradient(values - rows)
        return Quantized(
            straight_through.reshape(x.shape), loss, ids.reshape(x.shape[0], -1), perplexity, usage
        )

    def lookup(self, ids: Int[Array, "b h w"]) -> Float[Array, "b h w c"]:
        """The codes of a map of indices: (B, H, W) -> (B, H, W, dim).

        Raises:
            DataError: an index is out of range.
        """
        check_ids(ids, self.codes, "code")
        return self.embed[...].at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    def _update_codebook(
        self,
        rows: Float[Array, "n c"],
        one_hot: Float[Array, "n codes"],
        revival: Float[Array, " codes"] | None,
    ) -> None:
        """Update the moving averages by the batch, and the codebook with them."""
        size = self.decay * self.cluster_size[...] + (1 - self.decay) * one_hot.sum(0)
        average = self.decay * self.embed_avg[...] + (1 - self.decay) * one_hot.T @ rows
        total = size.sum()
        smoothed = (size + self.eps) / (total + self.codes * self.eps) * total
        embed = average / smoothed[:, None]
        if self.revive_below > 0:
            if revival is None:
                raise DataError("revive_below needs the call's revival: uniform numbers, one for each code")
            dead = size < self.revive_below
            indices = (jax.lax.stop_gradient(revival) * len(rows)).astype(int)
            picked = rows[jnp.clip(indices, 0, len(rows) - 1)]
            embed = jnp.where(dead[:, None], picked, embed)
            average = jnp.where(dead[:, None], picked * self.revive_below, average)
            size = jnp.maximum(size, self.revive_below)
        self.cluster_size[...] = size
        self.embed_avg[...] = average
        self.embed[...] = embed
