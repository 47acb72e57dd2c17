"""Net1D and xResNet1d against PyTorch, layer by layer from the papers: the same weights give the same features."""

import jax
import numpy as np
import pytest
from flax import nnx
from frame_batches import initialised, small

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # its threads wait by spinning, which starves tests that run beside this one
F = torch.nn.functional


def tensor(x):
    return torch.from_numpy(np.array(x))


def conv(x, layer, stride=1, groups=1, padding=None):
    """PyTorch's convolution with our kernel [k, in, out]; "same" padding, or the given one on both sides."""
    kernel = tensor(layer["kernel"]).permute(2, 1, 0)
    bias = tensor(layer["bias"]) if "bias" in layer else None
    if padding is None:
        length, k = x.shape[-1], kernel.shape[-1]
        total = max(0, (-(-length // stride) - 1) * stride + k - length)
        x, padding = F.pad(x, (total // 2, total - total // 2)), 0
    return F.conv1d(x, kernel, bias, stride, padding, groups=groups)


def norm(x, layer, groups):
    return F.group_norm(x, groups, tensor(layer["scale"]), tensor(layer["bias"]))


def dense(x, layer):
    return x @ tensor(layer["kernel"]) + tensor(layer["bias"])


def net1d(x, p, sizes):
    def activated(x, layer):
        return F.silu(norm(x, layer["norm"], sizes.norm_groups) if sizes.norm_groups else x)

    x = activated(conv(x, p["stem"], 2), p["activation"] if sizes.norm_groups else None)
    at = 0
    for filters, count in zip(sizes.filters, sizes.blocks):
        for number in range(count):
            b, stride = p["blocks"][at], 1 if number else sizes.stride
            y = x if at == 0 else activated(x, b.get("before"))
            y = conv(y, b["enter"])
            y = conv(activated(y, b.get("activation")), b["middle"], stride, filters // sizes.group_width)
            y = conv(activated(y, b.get("last_activation")), b["leave"])
            hidden = F.silu(dense(y.mean(-1), b["excitation"]["down"]))
            y = y * torch.sigmoid(dense(hidden, b["excitation"]["up"]))[..., None]
            shortcut = F.max_pool1d(x, stride) if stride > 1 else x
            new = filters - x.shape[1]
            x = y + F.pad(shortcut, (0, 0, new // 2, new - new // 2))
            at += 1
    return x


def xresnet1d(x, p, sizes):
    def layer(x, at, stride=1):
        k = at["conv"]["kernel"].shape[0]
        return norm(conv(x, at["conv"], stride, padding=(k - 1) // 2), at["norm"], sizes.norm_groups)

    for number in range(3):
        x = F.relu(layer(x, p["stem"][number], 1 if number else 2))
    x, at = F.max_pool1d(x, 3, 2, 1), 0
    for stage, count in enumerate(sizes.blocks):
        for number in range(count):
            b, stride = p["blocks"][at], 2 if stage and not number else 1
            strided, y = (0 if sizes.expansion == 1 else 1), x
            for i, one in sorted(b["layers"].items()):
                y = F.relu(layer(y, one, stride if i == strided else 1))
            y = layer(y, b["last"])
            shortcut = F.avg_pool1d(x, 2, ceil_mode=True) if stride > 1 else x
            shortcut = layer(shortcut, b["shortcut"]) if "shortcut" in b else shortcut
            x, at = F.relu(y + shortcut), at + 1
    return x


@pytest.mark.parametrize("kind", ["net1d", "norms", "xresnet1d", "plain"])
def test_features_are_those_of_pytorch(kind):
    config = small(kind)
    graphdef, state = initialised(config)
    network = nnx.merge(graphdef, state).network
    name = config.backbone.name
    # all twelve leads and their flags; a length at which no pool of the originals reaches beyond the end
    x = np.random.default_rng(0).standard_normal((2, 24, 128)).astype(np.float32)
    twin = {"net1d": net1d, "xresnet1d": xresnet1d}[name]
    want = twin(tensor(x), nnx.to_pure_dict(state)["network"], getattr(config.backbone, name)).numpy()
    # in a batch of longer windows, whose room behind the end must not be seen
    there = np.arange(160) < np.array([[128], [128]])
    roomy = np.pad(x, ((0, 0), (0, 0), (0, 32))).swapaxes(1, 2)
    got, after = jax.jit(lambda x, there: network(x, there))(roomy, there)
    length = 128 // network.stride
    assert np.abs(want).max() > 0.1 and want.shape[-1] == length
    np.testing.assert_array_equal(after, np.arange(after.shape[1]) < np.full((2, 1), length))
    assert not np.asarray(got)[:, length:].any()
    np.testing.assert_allclose(np.swapaxes(got[:, :length], 1, 2), want, atol=1e-4 * np.abs(want).max())
