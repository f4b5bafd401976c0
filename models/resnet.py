"""Residual blocks of dilated 1-D convolutions: shape (N, C, T) in and out."""
import torch.nn as nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, T)."""

    def forward(self, x):
        return super().forward(x.transpose(-2, -1)).transpose(-2, -1)


# T2M-GPT models/resnet.py: group and batch norm use eps 1e-6
NORMS = {
    None: lambda channels: nn.Identity(),
    "LN": ChannelLayerNorm,
    "GN": lambda channels: nn.GroupNorm(32, channels, eps=1e-6),
    "BN": lambda channels: nn.BatchNorm1d(channels, eps=1e-6),
}


class ResConv1DBlock(nn.Module):
    """Add conv2(act2(norm2(conv1(act1(norm1(x)))))) to x: a dilated kernel of three, then one of one.

    dropout: share of what is added that training sets to 0 (MoMask's blocks: 0.2).
    """

    def __init__(self, n_in, n_state, dilation=1, activation="relu", norm=None, dropout=0.0):
        super().__init__()
        self.norm1 = NORMS[norm](n_in)
        self.norm2 = NORMS[norm](n_state)
        self.activation1 = ACTIVATIONS[activation]()
        self.activation2 = ACTIVATIONS[activation]()
        self.conv1 = nn.Conv1d(n_in, n_state, 3, 1, dilation, dilation)
        self.conv2 = nn.Conv1d(n_state, n_in, 1, 1, 0)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        h = self.conv1(self.activation1(self.norm1(x)))
        return x + self.dropout(self.conv2(self.activation2(self.norm2(h))))


class Resnet1D(nn.Module):
    """Stack residual blocks of dilations `dilation_growth_rate ** i`, the widest first unless told."""

    def __init__(self, n_in, n_depth, dilation_growth_rate=1, reverse_dilation=True, activation="relu",
                 norm=None, dropout=0.0):
        super().__init__()
        blocks = [ResConv1DBlock(n_in, n_in, dilation_growth_rate ** i, activation, norm, dropout)
                  for i in range(n_depth)]
        self.model = nn.Sequential(*(reversed(blocks) if reverse_dilation else blocks))

    def forward(self, x):
        return self.model(x)
