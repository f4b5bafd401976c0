"""The convolutional encoder and decoder: (N, D, T) features to (N, C, T / 2**down_t) latents and back."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from models.resnet import Resnet1D


class Encoder(nn.Module):
    def __init__(self, input_emb_width=3, output_emb_width=512, down_t=3, stride_t=2, width=512, depth=3,
                 dilation_growth_rate=3, activation="relu", norm=None, dropout=0.0):
        super().__init__()
        layers = [nn.Conv1d(input_emb_width, width, 3, 1, 1), nn.ReLU()]
        for _ in range(down_t):
            layers.append(nn.Sequential(
                nn.Conv1d(width, width, stride_t * 2, stride_t, stride_t // 2),
                Resnet1D(width, depth, dilation_growth_rate, True, activation, norm, dropout)))
        layers.append(nn.Conv1d(width, output_emb_width, 3, 1, 1))
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class UpBlock(nn.Sequential):
    """Run Resnet1D, nearest ×2 upsampling and Conv1d(3), the last two computed as one.

    Each output of a kernel of three over doubled frames sees two inputs, one of them through two taps:
    y[2i] = w0 x[i-1] + (w1+w2) x[i] and y[2i+1] = (w0+w1) x[i] + w2 x[i+1]. Two kernels of two at the
    low rate give the same numbers, up to rounding, with a third fewer multiplications.
    """

    def forward(self, x):
        resnet, _, conv = self
        x = F.pad(resnet(x), (1, 1))
        w0, w1, w2 = conv.weight.unbind(-1)
        even = F.conv1d(x[..., :-1], torch.stack([w0, w1 + w2], -1), conv.bias)
        odd = F.conv1d(x[..., 1:], torch.stack([w0 + w1, w2], -1), conv.bias)
        return torch.stack([even, odd], -1).flatten(-2)


class Decoder(nn.Module):
    def __init__(self, input_emb_width=3, output_emb_width=512, down_t=3, stride_t=2, width=512, depth=3,
                 dilation_growth_rate=3, activation="relu", norm=None, dropout=0.0):
        super().__init__()
        if stride_t != 2:
            raise ValueError(f"stride_t is {stride_t}; the decoder upsamples by 2, so it must be 2")
        layers = [nn.Conv1d(output_emb_width, width, 3, 1, 1), nn.ReLU()]
        for _ in range(down_t):
            layers.append(UpBlock(
                Resnet1D(width, depth, dilation_growth_rate, True, activation, norm, dropout),
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv1d(width, width, 3, 1, 1)))
        layers += [nn.Conv1d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv1d(width, input_emb_width, 3, 1, 1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)
