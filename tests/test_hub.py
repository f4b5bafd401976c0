"""The pair of files for model hubs: there and back."""
import json

import numpy as np
import pytest
import torch

from export.hub import save_pair
from models.loading import load_checkpoint
from models.vqvae import HumanVQVAE
from tests.test_loading import build
from utils.errors import UserError

pytest.importorskip("safetensors")


@pytest.mark.parametrize("statistics", [True, False])
def test_a_pair_comes_back_as_it_was(tmp_path, statistics):
    net = build(activation="gelu")
    net.args = dict(vq_act="gelu", dilation_growth_rate=3, quantizer="ema_reset", recons_loss="l1")
    net.iteration = 5
    if statistics:
        net.mean, net.std = np.zeros(263), np.ones(263)
    save_pair(tmp_path, net)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded, x = HumanVQVAE.from_checkpoint(path), torch.randn(2, 16, 263)
        assert torch.equal(loaded(x)[0], net(x)[0]) and loaded.iteration == 5 and loaded.recipe == net.args
        assert np.array_equal(loaded.std, np.ones(263)) if statistics else loaded.std is None
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["fps"], config["unit_length"], config["layers"]) == (20, 2 ** net.down_t, 1)


def test_a_pair_that_does_not_fit_together_is_refused(tmp_path):
    net = build()
    save_pair(tmp_path, net)
    config = json.loads((tmp_path / "config.json").read_text())
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="SHA-256"):
        load_checkpoint(tmp_path)
    for content in ('{"format": "other"}', "{", json.dumps({**config, "format_version": 99})):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"no config\.json of this version"):
            load_checkpoint(tmp_path)
    with pytest.raises(UserError, match="something else"):
        (tmp_path / "config.json").write_text("{}")
        save_pair(tmp_path, net)
