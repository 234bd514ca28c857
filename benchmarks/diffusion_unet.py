"""distill_jax/models/unet.py once more, in PyTorch, for diffusion_step.py: nothing else uses it."""

import pathlib

SIGMA_DATA, HEADS, GROUPS = 0.5, 2, 8


def denoiser(folder: pathlib.Path):
  """models/unet.py in PyTorch with the weights of a folder, as EDM's denoiser of NCHW images."""
  import torch
  from safetensors.torch import load_file
  from torch import nn
  from torch.nn import functional as f

  flat = load_file(folder / "model.safetensors")

  def dense(name):
    out = nn.Linear(*flat[f"{name}.kernel"].shape)
    out.weight.data, out.bias.data = flat[f"{name}.kernel"].T.contiguous(), flat[f"{name}.bias"]
    return out

  def conv(name):
    kernel = flat[f"{name}.kernel"].permute(3, 2, 0, 1).contiguous()
    out = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding="same")
    out.weight.data, out.bias.data = kernel, flat[f"{name}.bias"]
    return out

  def norm(name):
    out = nn.GroupNorm(GROUPS, len(flat[f"{name}.scale"]))
    out.weight.data, out.bias.data = flat[f"{name}.scale"], flat[f"{name}.bias"]
    return out

  class Block(nn.Module):
    def __init__(self, name):
      super().__init__()
      self.norm_1, self.norm_2 = norm(f"{name}.norm_1"), norm(f"{name}.norm_2")
      self.first, self.second = conv(f"{name}.first"), conv(f"{name}.second")
      self.embed, self.skip, self.attention = dense(f"{name}.embed"), nn.Identity(), None
      if f"{name}.skip.kernel" in flat:
        self.skip = conv(f"{name}.skip")
      if f"{name}.attention.qkv.kernel" in flat:
        parts = [norm(f"{name}.attention.norm")]
        parts += [dense(f"{name}.attention.{part}") for part in ("qkv", "outputs")]
        self.attention = nn.ModuleList(parts)

    def forward(self, x, embedded):
      h = self.first(f.silu(self.norm_1(x)))
      scale, shift = self.embed(embedded)[:, :, None, None].chunk(2, dim=1)
      h = self.second(f.silu(self.norm_2(h) * (1 + scale) + shift)) + self.skip(x)
      if self.attention is None:
        return h
      before, qkv, after = self.attention
      b, c, *places = h.shape
      tokens = qkv(before(h).flatten(2).transpose(1, 2))
      query, key, value = tokens.view(b, -1, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
      mixed = f.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(b, -1, c)
      return h + after(mixed).transpose(1, 2).reshape(b, c, *places)

  class Denoiser(nn.Module):
    def __init__(self):
      super().__init__()
      for name in ("time_1", "time_2", "label"):
        setattr(self, name, nn.Parameter(flat[f"embed.{name}"]))
      levels = sum(key.startswith("down.") and key.endswith("first.bias") for key in flat)
      self.down = nn.ModuleList([Block(f"down.{i}") for i in range(levels)])
      self.up = nn.ModuleList([Block(f"up.{i}") for i in range(levels)])
      self.middle, self.norm = Block("middle"), norm("norm")
      self.inputs, self.outputs = conv("inputs"), conv("outputs")
      self.register_buffer("frequencies", 32 ** (torch.arange(16) / 15))

    def forward(self, x, sigma, label, augment_labels=None):
      sigma = sigma.reshape(-1)
      total = (sigma**2 + SIGMA_DATA**2)[:, None, None, None]
      phases = torch.atan2(sigma, torch.full_like(sigma, SIGMA_DATA))[:, None] * self.frequencies
      time = f.silu(torch.cat([phases.cos(), phases.sin()], 1) @ self.time_1) @ self.time_2
      embedded = f.silu(time + self.label[label])
      h, skips = self.inputs(x / total.sqrt()), []
      for i, block in enumerate(self.down):
        h = block(f.avg_pool2d(h, 2) if i else h, embedded)
        skips.append(h)
      h = self.middle(h, embedded)
      for i in reversed(range(len(self.up))):
        h = self.up[i](torch.cat([h, skips[i]], 1), embedded)
        h = f.interpolate(h, scale_factor=2) if i else h
      out = self.outputs(f.silu(self.norm(h)))
      return (
        SIGMA_DATA**2 / total * x - sigma[:, None, None, None] * SIGMA_DATA / total.sqrt() * out
      )

  return Denoiser()
