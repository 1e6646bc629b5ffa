"""BiGR in PyTorch, for `peer.py` alone: transformer, transcoder, loss and sampler.

Written from the paper (arXiv 2410.14672) and from the names and shapes of the published weights.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def affine(inputs: int, outputs: int) -> nn.Sequential:
    """Returns a linear map of a SiLU; its parameters are named "1.weight" and "1.bias"."""
    return nn.Sequential(nn.SiLU(), nn.Linear(inputs, outputs))


def mlp(inputs: int, width: int) -> nn.Sequential:
    """Returns two linear maps with a SiLU between."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


def holder(**parts: nn.Module) -> nn.ModuleDict:
    """Returns modules under names."""
    return nn.ModuleDict(parts)


class Layer(nn.Module):
    """A block of the transformer: attention and SwiGLU, both modulated."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        self.attention = holder(
            wqkv=nn.Linear(width, 3 * width, bias=False), wo=nn.Linear(width, width, bias=False)
        )
        self.feed_forward = holder(
            w1=nn.Linear(width, hidden, bias=False),
            w2=nn.Linear(hidden, width, bias=False),
            w3=nn.Linear(width, hidden, bias=False),
        )
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-5)

    def forward(self, x: Tensor, shared: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, S, D], shared: [B, 1, 6, D], cos and sin: [S, head_dim / 2]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared + self.ada_gss).unbind(-2)
        u = self.attention_norm(x) * (1 + scale1) + shift1
        rows, length, width = u.shape
        qkv = self.attention["wqkv"](u).view(rows, length, 3, self.heads, -1)
        query, key, value = (y.transpose(1, 2) for y in qkv.unbind(2))
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + gate1 * self.attention["wo"](mixed.transpose(1, 2).reshape(rows, length, width))
        u = self.ffn_norm(x) * (1 + scale2) + shift2
        part = self.feed_forward
        return x + gate2 * part["w2"](F.silu(part["w1"](u)) * part["w3"](u))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the channel pairs (2i, 2i + 1) of x [B, heads, S, head_dim]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class DenoiserBlock(nn.Module):
    """A block of the denoiser."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = mlp(width, width)
        self.adaLN_modulation = affine(width, 3 * width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """h and c: [..., width]."""
        shift, scale, gate = self.adaLN_modulation(c).chunk(3, dim=-1)
        return h + gate * self.mlp(plain_norm(h) * (1 + scale) + shift)


def plain_norm(h: Tensor) -> Tensor:
    """Returns h with mean 0 and variance 1."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


class Denoiser(nn.Module):
    """The denoiser of the transcoder."""

    def __init__(self, bits: int, condition: int, width: int, blocks: int) -> None:
        super().__init__()
        self.t_embedder = holder(mlp=mlp(256, width))
        self.x_embedder, self.c_embedder = nn.Linear(bits, width), nn.Linear(condition, width)
        self.blocks = nn.ModuleList(DenoiserBlock(width) for _ in range(blocks))
        self.final_layer = holder(
            linear=nn.Linear(width, bits), adaLN_modulation=affine(width, 2 * width)
        )
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def time(self, t: Tensor) -> Tensor:
        """Returns the embedding of times [...], counted from 0."""
        angles = t[..., None].float() * self.frequencies
        return self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], dim=-1))

    def forward(self, x_t: Tensor, time: Tensor, projected: Tensor) -> Tensor:
        """Returns logits [..., K] from bits, `time` and `c_embedder` of the hidden vector."""
        c, h = projected + time, self.x_embedder(2 * x_t - 1)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.final_layer["adaLN_modulation"](c).chunk(2, dim=-1)
        return self.final_layer["linear"](plain_norm(h) * (1 + scale) + shift)


class BiGR(nn.Module):
    """The model of the fields of a `bigr_jax.models.bigr.BiGR`; `total` times of the diffusion."""

    def __init__(self, like: Any, total: int) -> None:
        super().__init__()
        width, self.total, self.classes = like.width, total, like.num_classes
        hidden = like.ffn_hidden or -(-(8 * width // 3) // 256) * 256
        self.mask_tok = nn.Parameter(torch.zeros(1, width))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, like.length, width))
        self.cls_embedding = holder(embedding_table=nn.Embedding(like.num_classes + 1, width))
        self.tok_embeddings, self.adaLN = nn.Linear(like.bits, width), affine(width, 6 * width)
        self.layers = nn.ModuleList(Layer(width, like.heads, hidden) for _ in range(like.depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.denoise_mlp = Denoiser(like.bits, width, like.head_width, like.head_blocks)
        pairs = width // like.heads // 4
        frequencies = 10000.0 ** (-np.arange(pairs) / pairs)
        rows, cols = np.divmod(np.arange(like.length), like.grid[1])
        angles = np.concatenate([rows[:, None] * frequencies, cols[:, None] * frequencies], axis=1)
        for name, turn in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            # The class token has no place on the grid: zeros.
            table = np.concatenate([np.zeros((1, 2 * pairs)), turn])
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)

    def take(self, state: dict[str, Tensor]) -> None:
        """Takes published tensors; constants of the diffusion may be among them."""
        wrong = self.load_state_dict(state, strict=False)
        left = [name for name in wrong.unexpected_keys if not name.startswith("diffusion_proc")]
        if wrong.missing_keys or left:
            raise ValueError(f"missing {wrong.missing_keys}, unknown {left}")

    def copy(self) -> BiGR:
        """Returns a model of its own with the same weights, without gradients."""
        made = copy.deepcopy(self)
        made.zero_grad(set_to_none=True)
        return made

    def hidden(self, bits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Returns the hidden vectors [B, N, D] of bits [B, N, K] under labels [B]."""
        condition = self.cls_embedding["embedding_table"](labels)[:, None]
        x = torch.where(mask[..., None], self.mask_tok, self.tok_embeddings(bits))
        x = torch.cat([condition, x], dim=1)
        shared = self.adaLN(condition).unflatten(-1, (6, -1))
        for layer in self.layers:
            x = layer(x, shared, self.cos, self.sin)
        return self.norm(x)[:, 1:] + self.diffusion_pos_embed_learned

    def logits(self, bits: Tensor, labels: Tensor, mask: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the denoiser's logits [B, N, K] in training; t [B, N] counts from 1."""
        projected = self.denoise_mlp.c_embedder(self.hidden(bits, labels, mask))
        return self.denoise_mlp(x_t, self.denoise_mlp.time(t - 1), projected)

    def loss(
        self, logits: Tensor, bits: Tensor, labels: Tensor, mask: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """Returns the balanced cross entropy of the flips, the mean over the masked tokens."""
        y = (bits - x_t).abs()
        ones = y.mean(dim=-1, keepdim=True)
        weight = (1 - ones) * y + ones * (1 - y) + 1 / y.shape[-1]
        lost = F.binary_cross_entropy_with_logits(logits, y, weight, reduction="none")
        return (lost * mask[..., None]).sum() / (mask.sum() * y.shape[-1])


class Recorded:
    """The random numbers of a `RecordedDraws`."""

    def __init__(self, draws: Any) -> None:
        self.draws = draws

    def denoise(self, iteration: int, step: int) -> Tensor:
        """Returns the uniform draws of a step."""
        return torch.tensor(np.asarray(self.draws.denoise(iteration, step)))

    def gumbel(self, iteration: int) -> Tensor:
        """Returns the noise of the confidences."""
        return torch.tensor(np.asarray(self.draws.gumbel(iteration)))

    def bits(self, iteration: int) -> Tensor:
        """Returns the uniform draws of the bits."""
        return torch.tensor(np.asarray(self.draws.bits(iteration)))


class Drawn:
    """Random numbers of PyTorch, for codes of a shape [B, N, K]."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def denoise(self, iteration: int, step: int) -> Tensor:
        """Returns the uniform draws of a step."""
        return torch.rand(self.shape)

    def gumbel(self, iteration: int) -> Tensor:
        """Returns the noise of the confidences."""
        return -torch.empty(self.shape[:2]).exponential_().log()

    def bits(self, iteration: int) -> Tensor:
        """Returns the uniform draws of the bits."""
        return torch.rand(self.shape)


class Sampler:
    """Drawing in entropy order, with guidance and the linear schedule of the diffusion.

    every  the transcoder runs on all tokens, as published, not on the unknown ones alone
    eager  without torch.compile
    """

    def __init__(self, model: BiGR, every: bool, eager: bool) -> None:
        self.model, self.every = model, every
        self.hidden, self.step = model.hidden, self._step
        if not eager:
            self.hidden = torch.compile(self.hidden)
            self.step = torch.compile(self.step, dynamic=None if every else True)

    @torch.inference_mode()
    def draw(self, chosen: Any, labels: np.ndarray, draws: Any) -> Tensor:
        """Returns codes [B, N, K] of labels [B]."""
        model, count = self.model, chosen.iterations
        rows, length = len(labels), model.diffusion_pos_embed_learned.shape[1]
        width = model.tok_embeddings.in_features
        both = torch.cat([torch.tensor(labels), torch.full((rows,), model.classes)])
        bits, unknown = torch.zeros(rows, length, width), torch.ones(rows, length, dtype=torch.bool)
        for i in range(count):
            ratio = (i + 1) / count
            twice = bits.repeat(2, 1, 1), unknown.repeat(2, 1)
            z = model.denoise_mlp.c_embedder(self.hidden(twice[0], both, twice[1]))
            at = torch.ones_like(unknown) if self.every else unknown
            p = torch.zeros_like(bits)
            p[at] = self._chain(chosen, i, z.unflatten(0, (2, rows))[:, at], at, draws)
            scores = (2 * p - 1).abs().mean(dim=-1)
            scores += chosen.gumbel_temperature * (1 - ratio) * draws.gumbel(i)
            scores[~unknown] = -torch.inf
            left = math.floor(math.cos(math.pi / 2 * ratio) * length) if i + 1 < count else 0
            take = int(unknown[0].sum()) - left
            found = torch.zeros_like(unknown).scatter(1, scores.topk(take, dim=1).indices, True)
            bits = torch.where(found[..., None], (draws.bits(i) < p).float(), bits)
            unknown = unknown & ~found
        return bits

    def _chain(self, chosen: Any, i: int, z: Tensor, at: Tensor, draws: Any) -> Tensor:
        # z: [2, tokens, width]
        total, count = self.model.total, chosen.denoise_steps
        times = [int(u) + 1 for u in np.linspace(0.0, 1.0, count) * (total - 1)][::-1]
        embedded = self.model.denoise_mlp.time(torch.tensor(times) - 1)
        chance: Tensor = torch.full((z.shape[1], self.model.tok_embeddings.in_features), 0.5)
        p = chance
        for step, (t, s) in enumerate(zip(times, [*times[1:], 0], strict=True)):
            x_t = (draws.denoise(i, step)[at] < chance).float()
            kept = torch.tensor([(total - t) / (total - s), (total - s) / total])
            chance, p = self.step(x_t, embedded[step], z, kept, chosen.cfg_scale)
        return p

    def _step(
        self, x_t: Tensor, time: Tensor, z: Tensor, kept: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        logits, null = self.model.denoise_mlp(x_t.expand(2, -1, -1), time, z)
        flip = torch.sigmoid(null + scale * (logits - null))
        p = x_t * (1 - flip) + (1 - x_t) * flip
        one = kept[0] * x_t + (1 - kept[0]) / 2
        a = kept[1] * p + (1 - kept[1]) / 2
        return a * one / (a * one + (1 - a) * (1 - one)), p
