"""The network's shapes, keys and rebuilding."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.encdec import Decoder, UpBlock
from models.resnet import Resnet1D
from models.vqvae import VQVAE_251, HumanVQVAE
from utils.errors import UserError

PUBLISHED = SimpleNamespace(dataname="t2m", quantizer="ema_reset", mu=0.99, beta=1.0)


def small(dataname="t2m", quantizer="ema_reset", act="relu", norm=None, width=32):
    args = SimpleNamespace(dataname=dataname, quantizer=quantizer, mu=0.99, beta=1.0)
    torch.manual_seed(0)
    return HumanVQVAE(args, 16, width, width, 2, 2, width, 3, 3, act, norm)


def published_keys():
    """Every key and shape of the published net's state-dict, spelled out from the paper's sizes."""
    keys = {}

    def conv(name, out, into, kernel):
        keys[f"vqvae.{name}.weight"], keys[f"vqvae.{name}.bias"] = (out, into, kernel), (out,)

    conv("encoder.model.0", 512, 263, 3)
    conv("encoder.model.4", 512, 512, 3)
    conv("decoder.model.0", 512, 512, 3)
    conv("decoder.model.4", 512, 512, 3)
    conv("decoder.model.6", 263, 512, 3)
    for i in (2, 3):
        conv(f"encoder.model.{i}.0", 512, 512, 4)
        conv(f"decoder.model.{i}.2", 512, 512, 3)
        for j in range(3):
            for side in (f"encoder.model.{i}.1", f"decoder.model.{i}.0"):
                conv(f"{side}.model.{j}.conv1", 512, 512, 3)
                conv(f"{side}.model.{j}.conv2", 512, 512, 1)
    keys["vqvae.quantizer.codebook"] = (512, 512)
    return keys


def test_published_state_dict_and_shapes():
    net = HumanVQVAE(PUBLISHED, 512, 512, 512, 2, 2, 512, 3, 3, "relu", None).eval()
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == published_keys()
    assert len(net.state_dict()) == 67
    assert sum(value.numel() for value in net.state_dict().values()) == 19_436_807 + 512 * 512
    x = torch.randn(2, 64, 263)
    assert net.vqvae.encoder(x.transpose(1, 2)).shape == (2, 512, 16)
    codes = net.encode(x)
    assert codes.shape == (2, 16) and codes.dtype == torch.int64
    assert net.forward_decoder(codes).shape == (2, 64, 263)
    assert net.forward_decoder(codes[0]).shape == (1, 64, 263)


def test_dilations_run_from_wide_to_narrow():
    dilations = [block.conv1.dilation[0] for block in Resnet1D(8, 3, 3).model]
    assert dilations == [9, 3, 1]
    assert [block.conv1.dilation[0] for block in Resnet1D(8, 3, 3, reverse_dilation=False).model] == [1, 3, 9]


def test_joined_upsampling_equals_upsampling_then_convolution():
    block = Decoder(5, 8, 1, 2, 8, 2, 3).double().model[2]
    assert isinstance(block, UpBlock)
    x = torch.randn(2, 8, 7, dtype=torch.float64)
    torch.testing.assert_close(block(x), torch.nn.Sequential(*block)(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("quantizer", ["ema_reset", "orig", "ema", "reset"])
@pytest.mark.parametrize(("dataname", "act", "norm"), [("t2m", "gelu", "LN"), ("kit", "silu", "GN"), ("t2m", "relu", "BN")])
def test_every_variant_runs_both_ways(quantizer, dataname, act, norm):
    net = small(dataname, quantizer, act, norm)
    width = 263 if dataname == "t2m" else 251
    out, loss, perplexity = net(torch.randn(4, 32, width))
    (out.square().mean() + loss).backward()
    assert out.shape == (4, 32, width) and 1 <= float(perplexity) <= 16
    assert all(torch.isfinite(p.grad).all() for p in net.vqvae.encoder.parameters())
    key = "vqvae.quantizer.embedding.weight" if quantizer == "orig" else "vqvae.quantizer.codebook"
    assert key in net.state_dict()


@pytest.mark.parametrize("quantizer", ["ema_reset", "orig"])
def test_decoding_the_codes_is_the_eval_output(quantizer):
    net = small(quantizer=quantizer)
    net(torch.randn(8, 32, 263))
    net.eval()
    x = torch.randn(3, 32, 263)
    torch.testing.assert_close(net.forward_decoder(net.encode(x)), net(x)[0], atol=1e-5, rtol=0)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="output_emb_width"):
        VQVAE_251(PUBLISHED, code_dim=16, output_emb_width=32, width=32)
    with pytest.raises(ValueError, match="stride_t"):
        VQVAE_251(PUBLISHED, code_dim=32, output_emb_width=32, width=32, stride_t=4)


@pytest.mark.parametrize("quantizer", ["ema_reset", "orig"])
def test_an_upstream_file_rebuilds_its_net(tmp_path, quantizer):
    net = small(quantizer=quantizer)
    net(torch.randn(8, 32, 263))
    torch.save({"net": net.state_dict()}, tmp_path / "net_last.pth")
    rebuilt = HumanVQVAE.from_checkpoint(tmp_path / "net_last.pth")
    x = torch.randn(2, 32, 263)
    torch.testing.assert_close(rebuilt(x)[0], net.eval()(x)[0])
    with pytest.raises(UserError, match="no statistics"):
        rebuilt.reconstruct(x[0])
    rebuilt.mean, rebuilt.std = np.zeros(263), np.ones(263)
    assert rebuilt.reconstruct(x[0].numpy()[:30]).shape == (28, 22, 3)


def test_a_checkpoint_of_another_network_is_refused_whole(tmp_path):
    other = small("kit", width=64)
    torch.save({"net": other.state_dict()}, tmp_path / "kit.pth")
    assert HumanVQVAE.from_checkpoint(tmp_path / "kit.pth").spec.name == "kit"
    from models.vqvae import load_net
    from utils.checkpoint import load_checkpoint
    net = small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match=r"another network.*encoder\.model\.0\.weight"):
        load_net(net, load_checkpoint(tmp_path / "kit.pth"))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
