"""The training step against PyTorch's on this CPU: the same encoder and decoder, the same shapes, interleaved.

CSFM Tiny's widths and decoder, twelve leads of ten seconds in tokens of half a second, a quarter visible, one window a
row (so that neither side gains by packing), AdamW. PyTorch is written plainly from torch.nn: embedding, pre-norm
blocks around `scaled_dot_product_attention`, gathers, fused AdamW; float32, and bfloat16 autocast. Dropout is off on
both sides. Products are the same; first losses are shown, since both sides must begin near those of a prediction of
zero. That our model is what PyTorch computes is tested elsewhere (tests/test_export.py).
"""

import dataclasses
import statistics
import time

ROUNDS, STEPS, ROWS = 5, 3, 8
DEPTH = 3  # of Tiny's six blocks: half the wait, the same products


def run(rounds: int = ROUNDS, steps: int = STEPS, rows: int = ROWS) -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure; a line that says so where there is no PyTorch."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return [("PyTorch", "left out", "", "torch is not installed")]
    lines = []
    for compute, goal in (("float32", 0.95), ("bfloat16", 0.9)):
        config = config_of(rows, compute)
        batch = packed_rows(config)
        sides = {"jax": _jax(config, batch), "torch": _torch(config, batch)}
        losses = {name: side() for name, side in sides.items()}
        seconds = interleaved(sides, rounds, steps)
        note = (
            f"goal >= {goal}; {1e3 * seconds['jax']:.0f} and {1e3 * seconds['torch']:.0f} ms; first losses "
            + ", ".join(f"{loss:.2f}" for loss in losses.values())
        )
        lines.append((f"{compute}: speed over PyTorch's", seconds["torch"] / seconds["jax"], "x", note))
    return lines


def config_of(rows: int, compute: str):
    """CSFM Tiny's sizes, without text, for rows that hold one twelve-lead window."""
    from csfm_jax import config as configs

    tiny = configs.load("csfm_tiny")
    tokens = dataclasses.replace(tiny.tokens, text_length=0, patch=tiny.tokens.patch | {"ecg": 125, "ppg": 125})
    mask = dataclasses.replace(tiny.data.mask, weights={"random": 1.0})
    data = dataclasses.replace(tiny.data, rows=rows, row_tokens=241, row_visible=61, row_windows=1, mask=mask)
    encoder = dataclasses.replace(tiny.encoder, depth=DEPTH, compute=compute, remat="none", dropout=0.0)
    return dataclasses.replace(tiny, tokens=tokens, data=data, encoder=encoder)


def packed_rows(config):
    """A TokenBatch of one twelve-lead window of noise a row."""
    from benchmarks.padding import batches

    return batches(config, [[0]] * config.data.rows)[0]


def interleaved(sides: dict, rounds: int, steps: int) -> dict[str, float]:
    """Seconds of a step of each side: the median round."""
    seconds = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            began = time.perf_counter()
            for _ in range(steps):
                sides[name]()
            seconds[name].append((time.perf_counter() - began) / steps)
    return {name: statistics.median(found) for name, found in seconds.items()}


def _jax(config, batch):
    from benchmarks.padding import Side

    return Side(config, [batch], "auto").step


def _torch(config, batch):
    """A function that makes one step and returns the loss."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    model = _model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95), fused=True)
    names = ("patches", "channel", "time", "visible", "target")
    values = {name: torch.from_numpy(np.asarray(getattr(batch, name))) for name in names}
    step_of_time = (values["time"] / config.encoder.position_seconds + 1e-3).floor().long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.encoder.compute == "bfloat16"):
            predicted = model(values["patches"], values["channel"].long(), step_of_time, values["visible"].long())
        error = (predicted.float() - values["patches"]).square().mean(-1)
        loss = (error * values["target"]).sum() / values["target"].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        return loss.item()

    return step


def _model(config):
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, sizes):
            super().__init__()
            inner = sizes.heads * sizes.head_dim
            self.heads = sizes.heads
            self.attention_norm, self.mlp_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
            self.qkv, self.out = nn.Linear(sizes.width, 3 * inner, bias=False), nn.Linear(inner, sizes.width)
            self.mlp = nn.Sequential(nn.Linear(sizes.width, sizes.mlp), nn.GELU(), nn.Linear(sizes.mlp, sizes.width))

        def forward(self, x):
            rows, tokens, _ = x.shape
            qkv = self.qkv(self.attention_norm(x)).view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(*qkv)
            x = x + self.out(mixed.transpose(1, 2).reshape(rows, tokens, -1))
            return x + self.mlp(self.mlp_norm(x))

    class Autoencoder(nn.Module):
        def __init__(self, encoder, decoder, patch, channels=64):
            super().__init__()
            self.embed = nn.Sequential(
                nn.LayerNorm(patch), nn.Linear(patch, encoder.width), nn.LayerNorm(encoder.width)
            )
            for part, sizes in (("encoder", encoder), ("decoder", decoder)):
                place = [nn.Embedding(channels, sizes.width), nn.Embedding(encoder.position_steps, sizes.width)]
                setattr(self, f"{part}_place", nn.ModuleList(place))
                blocks = [Block(sizes) for _ in range(sizes.depth)]
                setattr(self, part, nn.Sequential(*blocks, nn.LayerNorm(sizes.width)))
            self.enter, self.head = nn.Linear(encoder.width, decoder.width), nn.Linear(decoder.width, patch)
            self.mask = nn.Parameter(0.02 * torch.randn(decoder.width))

        def forward(self, patches, channel, steps, visible):
            def seen(x):
                return torch.gather(
                    x, 1, visible.view(*visible.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
                )

            by_channel, by_time = self.encoder_place
            x = self.embed(seen(patches)) + by_channel(seen(channel)) + by_time(seen(steps))
            x = self.enter(self.encoder(x))
            by_channel, by_time = self.decoder_place
            rows = self.mask.to(x.dtype).expand(*channel.shape, -1)
            rows = rows.scatter(1, visible[..., None].expand(-1, -1, x.shape[-1]), x)
            return self.head(self.decoder(rows + by_channel(channel) + by_time(steps)))

    return Autoencoder(config.encoder, config.decoder, config.tokens.patch["ecg"])
