"""HSTA against a slow reading of its description, one matrix product after the other."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from finetune.models.hsta import Hsta, HstaConfig

CONFIG = HstaConfig(
    image_size=32, frames=4, dim=24, special_patch=12, special_dim=16, heads=4, stages=2
)


class Slow:
    """The network from its weights by name, float64, in evaluation."""

    def __init__(self, weights: dict[str, Tensor]):
        self.w = weights

    def logits(self, clip: Tensor, pair: Tensor) -> Tensor:
        """Clip [B, 3, T, h, w], pair [B, 3, 2, h, w] whose border fills no token."""
        border = (pair.shape[3] % CONFIG.special_patch) // 2
        pair = pair[..., border:-border, border:-border]
        special, video = self.tokens("special", pair, 12), self.tokens("video", clip, 16)
        for i in range(CONFIG.stages):
            special = self.block(special, f"stages.{i}.special.0")
            for j in range(CONFIG.video_blocks):
                video = self.block(video, f"stages.{i}.video.{j}")
            asks = (special[:, :1], video[:, :1])
            own = self.exchange(asks[0], video[:, 1:], f"stages.{i}.special_asks")
            other = self.exchange(asks[1], special[:, 1:], f"stages.{i}.video_asks")
            special = torch.cat([own, special[:, 1:]], 1)
            video = torch.cat([other, video[:, 1:]], 1)
        both = (self.norm(special[:, 0], "special_norm"), self.norm(video[:, 0], "video_norm"))
        return self.linear(torch.cat(both, 1), "head")

    def tokens(self, branch: str, x: Tensor, patch: int) -> Tensor:
        kernel = self.w[f"{branch}.patch_embed.proj.weight"]  # [E, 3, 2, patch, patch]
        bias = self.w[f"{branch}.patch_embed.proj.bias"]
        cubes = [
            x[:, :, t : t + 2, top : top + patch, left : left + patch].flatten(1)
            for t in range(0, x.shape[2], 2)
            for top in range(0, x.shape[3], patch)
            for left in range(0, x.shape[4], patch)
        ]
        tokens = [cube @ kernel.flatten(1).T + bias for cube in cubes]
        first = self.w[f"{branch}.class_token"].expand(len(x), -1, -1)
        found = torch.cat([first, torch.stack(tokens, 1)], 1)
        place, dim = torch.arange(found.shape[1]).double()[:, None], found.shape[2]
        turn = place / 10000 ** (2 * (torch.arange(dim) // 2).double() / dim)
        return found + torch.where(torch.arange(dim) % 2 == 0, turn.sin(), turn.cos())

    def block(self, x: Tensor, name: str) -> Tensor:
        y = self.norm(x, f"{name}.norm1")
        x = x + self.attend(y, y, f"{name}.attn")
        y = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        return x + self.linear(functional.gelu(y), f"{name}.mlp.fc2")

    def exchange(self, own: Tensor, patches: Tensor, name: str) -> Tensor:
        """CSTA: there, one query over itself and the others, residual, and back."""
        asking = self.project(own, f"{name}.outward")
        normed = self.norm(torch.cat([asking, patches], 1), f"{name}.norm")
        asking = asking + self.attend(normed[:, :1], normed, f"{name}.attn")
        return self.project(asking, f"{name}.back")

    def attend(self, asking: Tensor, asked: Tensor, name: str) -> Tensor:
        wq, wk, wv = self.w[f"{name}.qkv.weight"].chunk(3)
        q = asking @ wq.T + self.w[f"{name}.q_bias"]
        k, v = asked @ wk.T, asked @ wv.T + self.w[f"{name}.v_bias"]
        size, out = q.shape[2] // CONFIG.heads, []
        for h in range(CONFIG.heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
            out.append(scores.softmax(2) @ v[..., part])
        return self.linear(torch.cat(out, 2), f"{name}.proj")

    def project(self, x: Tensor, name: str) -> Tensor:
        return self.linear(functional.gelu(self.norm(x, f"{name}.0")), f"{name}.2")

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, spread = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        normed = (x - mean) / (spread + 1e-6).sqrt()
        return normed * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]


def test_the_network_is_the_slow_reading_of_its_description():
    generator = torch.Generator().manual_seed(0)
    model = Hsta(CONFIG, 5).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    x = torch.randn(2, 3, 6, 32, 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = Slow(dict(model.state_dict())).logits(x[:, :, :4], x[:, :, 4:])
        found = model(x)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-7)
