"""SmolLM2's forward in plain torch, with a low-rank update merged once a step.

The weights of all blocks stand in one tensor a kind, so that the update of a kind is one batched
product (Hu et al. 2021, arXiv 2106.09685: `W + SCALE * B A`, with `B` zero at the start).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["KINDS", "SCALE", "Language", "LowRank", "Patch", "Reading"]

SCALE = 2.0  # what the product of the update is multiplied by
KINDS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class Patch(NamedTuple):
    """A write into the residual stream: row `i` gets `value[i]` at `position[i]`, after a block.

    Attributes:
        block: The block of each row, `[row]`; -1 writes nothing.
        position: Where, `[row]`.
        value: What, `[row, width]`.
    """

    block: Tensor
    position: Tensor
    value: Tensor


class Reading(NamedTuple):
    """The residual stream after the last block, and what was read of every block.

    Attributes:
        last: `[row, position, width]`.
        read: `[row, block, width]`, at the positions asked for; `None` if none was.
    """

    last: Tensor
    read: Tensor | None


class LowRank(nn.Module):
    """A low-rank update of linear maps of the first blocks.

    Args:
        language: Whose.
        rank: Its rank.
        kinds: Which maps, of `KINDS`.
        blocks: Of how many blocks, from the first on.
        seed: Of the first factors.
    """

    def __init__(
        self,
        language: Language,
        rank: int = 16,
        *,
        kinds: Sequence[str] = tuple(KINDS),
        blocks: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.rank = rank
        blocks = language.blocks if blocks is None else min(blocks, language.blocks)
        generator = torch.Generator().manual_seed(seed)
        a, b = {}, {}
        for kind in kinds:
            _, out, given = language.weights[kind].shape
            a[kind] = nn.Parameter(
                torch.randn(blocks, rank, given, generator=generator) * given**-0.5
            )
            b[kind] = nn.Parameter(torch.zeros(blocks, out, rank))
        self.a, self.b = nn.ParameterDict(a), nn.ParameterDict(b)


@dataclass
class Language:
    """A Llama's weights, by kind.

    Attributes:
        embed: `[token, width]`; the head too.
        weights: `[block, out, in]` of each of `KINDS`.
        norms: `[block, 2, width]`, before attention and before the feed-forward.
        final: The norm before the head, `[width]`.
        heads: Query heads.
        groups: Heads of keys and values.
        eps: Of the norms.
        theta: The base of the rotary angles.
    """

    embed: Tensor
    weights: dict[str, Tensor]
    norms: Tensor
    final: Tensor
    heads: int
    groups: int
    eps: float
    theta: float

    @classmethod
    def of(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Language:
        """From the state dict and the configuration of a `LlamaForCausalLM` with a tied head."""
        blocks = range(config["num_hidden_layers"])
        prefix = "model.layers.{}.{}.weight"

        def stacked(name: str) -> Tensor:
            return torch.stack([state[prefix.format(i, name)].float() for i in blocks])

        norms = [stacked(f"{at}_layernorm") for at in ("input", "post_attention")]
        return cls(
            embed=state["model.embed_tokens.weight"].float(),
            weights={kind: stacked(name) for kind, name in KINDS.items()},
            norms=torch.stack(norms, dim=1),
            final=state["model.norm.weight"].float(),
            heads=config["num_attention_heads"],
            groups=config["num_key_value_heads"],
            eps=config["rms_norm_eps"],
            theta=config["rope_parameters"]["rope_theta"],
        )

    def to(self, device: str | torch.device) -> Language:
        """The same on a device."""
        return Language(
            self.embed.to(device),
            {kind: weight.to(device) for kind, weight in self.weights.items()},
            self.norms.to(device),
            self.final.to(device),
            self.heads,
            self.groups,
            self.eps,
            self.theta,
        )

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return len(self.norms)

    def merged(
        self, update: LowRank | None = None, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """The maps as they are computed with: update added, `qkv` and `gate_up` in one."""

        def of(kind: str) -> Tensor:
            weight = self.weights[kind]
            if update is not None and kind in update.a:
                a, b = update.a[kind], update.b[kind]
                changed = torch.baddbmm(weight[: len(a)], b, a, alpha=SCALE)
                weight = torch.cat([changed, weight[len(a) :]])
            return weight.to(dtype)

        return {
            "qkv": torch.cat([of("q"), of("k"), of("v")], 1),
            "o": of("o"),
            "gate_up": torch.cat([of("gate"), of("up")], 1),
            "down": of("down"),
        }

    def read(
        self,
        merged: Mapping[str, Tensor],
        embedded: Tensor,
        *,
        patch: Patch | None = None,
        at: Tensor | None = None,
    ) -> Reading:
        """Run the blocks; rows may be padded on the right, as nothing attends to what follows it.

        Args:
            merged: Of `merged`.
            embedded: `[row, position, width]`.
            patch: What to write.
            at: Read after every block here, `[row]`.
        """
        x = embedded.float()
        dtype = merged["o"].dtype
        rows, length, width = x.shape
        size = width // self.heads
        cos, sin = self._angles(length, size, x.device, dtype)
        each = torch.arange(rows, device=x.device)
        found = []
        maps = {kind: weight.unbind(0) for kind, weight in merged.items()}
        for i in range(self.blocks):
            h = functional.rms_norm(x, (width,), self.norms[i, 0], self.eps).to(dtype)
            qkv = functional.linear(h, maps["qkv"][i])
            qkv = qkv.view(rows, length, self.heads + 2 * self.groups, size)
            qk, v = qkv.split([self.heads + self.groups, self.groups], dim=2)
            qk = _turned(qk, cos, sin).transpose(1, 2)
            q, k, v = qk[:, : self.heads], qk[:, self.heads :], v.transpose(1, 2)
            z = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            z = z.transpose(1, 2).reshape(rows, length, width)
            x = x + functional.linear(z, maps["o"][i])
            h = functional.rms_norm(x, (width,), self.norms[i, 1], self.eps).to(dtype)
            gate, up = functional.linear(h, maps["gate_up"][i]).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, maps["down"][i])
            if patch is not None:
                now = (patch.block == i).unsqueeze(-1)
                x = x.clone()
                old = x[each, patch.position]
                x[each, patch.position] = torch.where(now, patch.value, old)
            if at is not None:
                found.append(x[each, at])
        return Reading(x, torch.stack(found, 1) if found else None)

    def logits(
        self, residual: Tensor, dtype: torch.dtype = torch.float32, at: Tensor | None = None
    ) -> Tensor:
        """Logits of residuals of any shape, `[..., token]`.

        Args:
            residual: After the last block.
            dtype: What to compute in.
            at: The positions wanted of each row of `[row, position, width]`, `[row, k]`.
        """
        h = functional.rms_norm(residual, (residual.shape[-1],), self.final, self.eps).to(dtype)
        if at is not None:  # a product, as its gradient is deterministic and an index's is not
            place = torch.arange(h.shape[1], device=h.device)
            h = (at.unsqueeze(-1) == place).to(dtype) @ h
        return functional.linear(h, self.embed.to(dtype))

    def _angles(self, length: int, size: int, device: Any, dtype: torch.dtype) -> tuple:
        steps = torch.arange(0, size, 2, device=device, dtype=torch.float32) / size
        angles = torch.outer(torch.arange(length, device=device).float(), self.theta**-steps)
        angles = torch.cat([angles, angles], -1)
        angles = angles.unsqueeze(1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin
