"""Checkpoints of every origin: what loads, and the one line for everything else."""
import argparse
import os
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.loading import NET_ARGS, load_checkpoint, model_file
from models.vqvae import HumanVQVAE
from utils.errors import UserError

NAMED = SimpleNamespace(dataname="t2m", quantizer="ema_reset", mu=0.99, beta=1.0)


def build(**options):
    torch.manual_seed(0)
    net = HumanVQVAE(NAMED, 8, 32, 32, 1, 2, 32, 2, 3, **options)
    net.vqvae.quantizer.init_codebook(torch.randn(8, 32))
    return net.eval()


@pytest.fixture(scope="module")
def net():
    return build()


@pytest.fixture(scope="module")
def weights(net):
    return net.state_dict()


@pytest.fixture
def save(tmp_path):
    """Return a function that saves its argument, of torch.save or raw bytes, and returns the path."""
    def write(content, name="net.pth", **options):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path, **options)
        return path
    return write


def refusal(path, **overrides):
    """Return the message, without the path, that `path` is refused with; it is one plain line."""
    with pytest.raises(UserError) as caught:
        HumanVQVAE.from_checkpoint(path, **overrides)
    text = str(caught.value).replace(str(path), "FILE")
    assert "\n" not in text and "\x1b" not in text and len(text) <= 160 and "torch.load" not in text, text
    return text


# what loads

@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"net": state},
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    lambda state: {"net": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
    lambda state: {"net": {name.removeprefix("vqvae."): value for name, value in state.items()}},
    lambda state: {"net": state, "iter": np.int64(7), "loss": np.float32(2), "args": {"mu": np.float64(0.9)}},
    lambda state: {"net": state, "args": argparse.Namespace(vq_act="relu")},
    lambda state: {"net": state, "args": ["--lr", "2e-4"]},
], ids=["bare", "net", "state_dict", "module", "compiled", "inner", "numpy scalars", "namespace", "words"])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_load_from_every_wrapping(save, net, weights, wrap, zipped):
    path = save(wrap(weights), _use_new_zipfile_serialization=zipped)
    loaded, x = HumanVQVAE.from_checkpoint(path), torch.randn(2, 16, 263)
    assert torch.equal(loaded(x)[0], net(x)[0])


def test_a_folder_means_its_last_weights(save, weights):
    folder = save({"net": weights}, "net_last.pth").parent
    assert model_file(folder) == str(folder / "net_last.pth")
    assert HumanVQVAE.from_checkpoint(folder).nb_code == 8
    os.remove(folder / "net_last.pth")
    assert "a folder without a checkpoint; expected net_last.pth" in refusal(folder)
    assert "no such file" in refusal(folder / "net_last.pth")


def test_what_a_file_records_is_used(save):
    net = build(activation="silu", norm="GN")
    args = dict(vq_act="silu", vq_norm="GN", dilation_growth_rate=3, quantizer="ema", mu=0.5, lr=0.1)
    mean, std = torch.linspace(0, 1, 263), torch.linspace(1, 2, 263)
    path = save({"net": net.state_dict(), "args": args, "iter": 9, "mean": mean, "std": std})
    loaded, x = HumanVQVAE.from_checkpoint(path), torch.randn(2, 16, 263)
    assert torch.equal(loaded(x)[0], net(x)[0]) and loaded.vqvae.quantizer.mu == 0.5
    assert loaded.recipe == args and loaded.iteration == 9 and loaded.remarks == []
    assert loaded.args["vq_norm"] == "GN" and set(loaded.args) == set(NET_ARGS)
    assert loaded.mean.dtype == np.float64 and np.allclose(loaded.std, std)


CONTRADICTIONS = dict(
    dataname="kit", quantizer="ema", mu=0.5, beta=0.5, nb_code=9, code_dim=64, output_emb_width=64, down_t=2,
    stride_t=4, width=64, depth=3, dilation_growth_rate=2, vq_act="gelu", vq_norm="LN",
    num_quantizers=3, shared_codebook=True, quantize_dropout_prob=0.5, sample_codebook_temp=0.5,
    fsq_levels=[8, 5], block_dropout=0.2)
TRAINING_ALONE = ("mu", "beta", "quantize_dropout_prob", "sample_codebook_temp", "block_dropout")
OTHER_QUANTIZERS = ("num_quantizers", "shared_codebook", "fsq_levels")


@pytest.mark.parametrize("name", NET_ARGS)
def test_an_argument_against_the_file_is_refused_with_both_values(save, net, weights, name):
    own = SMALL
    path = save({"net": weights, "args": own})
    text = refusal(path, **{name: CONTRADICTIONS[name]})
    assert str(CONTRADICTIONS[name]) in text and str(own[name]) in text
    assert HumanVQVAE.from_checkpoint(path, **{name: own[name]}).args == own
    untold = ("dilation_growth_rate", "vq_act", "quantizer", *TRAINING_ALONE, *OTHER_QUANTIZERS)
    if name not in untold:  # so do the tensors alone
        bare = save({"net": weights, "args": {name: CONTRADICTIONS[name]}})
        assert str(CONTRADICTIONS[name]) in refusal(bare)


def test_the_constructors_names_are_understood_and_others_are_not(save):
    path = save({"net": build(activation="silu", norm="GN").state_dict()})
    loaded = HumanVQVAE.from_checkpoint(path, activation="silu", norm="GN", nb_code=8)
    assert (loaded.args["vq_act"], loaded.args["vq_norm"]) == ("silu", "GN")
    for wrong in ({"nbcode": 8}, {"vq_act": "relu", "activation": "relu"}):
        with pytest.raises(TypeError, match="unexpected"):
            HumanVQVAE.from_checkpoint(path, **wrong)
    for wrong in ({"vq_act": "tanh"}, {"quantizer": "lfq"}, {"mu": "much"}, {"dilation_growth_rate": 0}):
        assert "expected" in refusal(path, **wrong)


def test_what_the_tensors_cannot_tell_is_said(save):
    (remark,) = HumanVQVAE.from_checkpoint(save({"net": build(norm="GN").state_dict()})).remarks
    for words in ("vq_act relu", "vq_norm LN", "dilation_growth_rate 3", "quantizer ema_reset"):
        assert words in remark
    told = dict(vq_act="relu", vq_norm="GN", dilation_growth_rate=3, quantizer="ema")
    path = save({"net": build(norm="GN").state_dict()})
    assert HumanVQVAE.from_checkpoint(path, **told).remarks == []


@pytest.mark.parametrize(("name", "text"), [
    ("opt.txt", "--- Options ---\nvq_act: silu\nvq_norm: None\nnb_code: 8\ndilation_growth_rate: 2\n"
                "quantizer: ema\ndataset_name: t2m\ndata_root: ./elsewhere\n"),
    ("args.json", '{"vq_act": "silu", "dilation_growth_rate": 2, "quantizer": "ema", "lr": 0.1}')])
def test_arguments_beside_a_bare_file_are_read(save, weights, name, text):
    path = save({"net": weights})
    path.with_name(name).write_text(text)
    loaded = HumanVQVAE.from_checkpoint(path)
    assert loaded.args["vq_act"] == "silu" and loaded.args["dilation_growth_rate"] == 2
    assert len(loaded.remarks) == 1 and name in loaded.remarks[0] and loaded.recipe == {}
    assert "silu" in refusal(path, vq_act="relu")
    recorded = save({"net": weights, "args": {"vq_act": "gelu"}}, "recorded.pth")
    assert HumanVQVAE.from_checkpoint(recorded).args["vq_act"] == "gelu"  # the file's own come first
    path.with_name(name).write_bytes(b"\xff\xfe\x00{")
    assert f"{name}: is UTF-16 text" in refusal(path)


def test_saved_statistics_of_the_codebook_come_back(save, net, weights):
    state = dict(filled=True, counted=True, code_sum=torch.ones(8, 32), code_count=torch.full((8,), 3.0))
    loaded = HumanVQVAE.from_checkpoint(save({"net": weights, "quantizer": state}))
    assert loaded.vqvae.quantizer.counted and (loaded.vqvae.quantizer.code_count == 3).all()
    for wrong in (dict(state, code_count=torch.ones(1)), dict(filled=True), dict(state, filled=None), [1],
                  dict(state, code_sum=torch.full((8, 32), torch.nan))):
        assert "of its quantizer" in refusal(save({"net": weights, "quantizer": wrong}))


# what does not

class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_never_runs(save, tmp_path, zipped):
    path = save({"net": {}, "x": Canary(tmp_path / "canary")}, _use_new_zipfile_serialization=zipped)
    assert "system" in refusal(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_pickled_net_is_named(save, net, zipped):
    assert "a whole pickled module" in refusal(save(net, _use_new_zipfile_serialization=zipped))


@pytest.mark.parametrize(("content", "found"), [
    (b"", "empty"), (b"<!DOCTYPE html>", "a web page"), (b"version https://git-lfs.github.com/spec", "LFS"),
    (b"hello", "another kind"), (b"PK\x03\x04 and no more", "damaged"), (pickle.dumps([1], 4), "damaged"),
    ([1, 2], "a list"), (torch.zeros(3), "a Tensor"), ({"trans": {}, "epoch": 1}, "its keys: trans, epoch"),
    ({"net": torch.zeros(3)}, "its keys: net"), ({"net": {"w": torch.zeros(3)}}, "no motion VQ-VAE.*holds w"),
    ({"vq_model": {}, "ep": 3}, "no motion VQ-VAE"), ({"net": {"w": "x"}}, "'w' is a str")])
def test_other_files_are_told_apart(save, content, found):
    assert re.search(found, refusal(save(content)))


@pytest.mark.parametrize(("more", "found"), [
    ({"args": {"dataname": "motionx"}}, "motionx"),
    ({"args": {"quantizer": "residual"}}, "another network"), ({"args": {"nb_code": "many"}}, "many"),
    ({"mean": torch.zeros(251), "std": torch.ones(251)}, r"\(251,\).*263"),
    ({"mean": None, "std": None}, "mean"),
    ({"mean": torch.zeros(263)}, "std"), ({"mean": torch.zeros(263), "std": torch.zeros(263)}, "std over 0")])
def test_what_lies_beside_the_weights_is_checked(save, weights, more, found):
    assert re.search(found, refusal(save({"net": weights, **more})))


@pytest.mark.parametrize("key", ["vqvae.encoder.model.0.weight", "vqvae.decoder.model.5.bias",
                                 "vqvae.quantizer.codebook"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(save, weights, key, bad):
    broken = {name: value.clone() for name, value in weights.items()}
    broken[key].view(-1)[-1] = bad
    assert f"{key} holds NaN or Inf" in refusal(save({"net": broken}))


def test_an_unknown_width_and_another_network_are_named(save, weights):
    first = "vqvae.encoder.model.0.weight"
    wide = {**weights, first: torch.zeros(32, 322, 3)}
    assert "322 features" in refusal(save({"net": wide}))
    half = {name: value for name, value in weights.items() if "decoder" not in name}
    assert re.search(r"another network.*decoder\.model\.0\.weight none, expected \(32, 32, 3\)",
                     refusal(save({"net": half})))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damage_is_noticed(save, weights, damage):
    data = bytearray(save({"net": weights}).read_bytes())
    data[len(data) // 2] ^= 1
    text = refusal(save(bytes(data if damage == "flipped" else data[:-300])))
    assert "damaged" in text


def test_other_entries_are_kept_for_resuming(save, weights):
    content = load_checkpoint(save({"net": weights, "optimizer": {"state": {}}, "best": {"mpjpe": 1.0}}))
    assert content["optimizer"] == {"state": {}} and content["best"] == {"mpjpe": 1.0}
    assert content["args"] == {}


# residual and finite-scalar networks, and MoMask's files

SMALL = dict(NET_ARGS, nb_code=8, code_dim=32, output_emb_width=32, down_t=1, width=32, depth=2)


def build_residual(shared=False, **options):
    torch.manual_seed(0)
    net = HumanVQVAE.from_args(SimpleNamespace(**{
        **SMALL, "quantizer": "residual", "num_quantizers": 3, "shared_codebook": shared, **options})).train()
    net(torch.randn(2, 16, 263))
    return net.eval()


def write_momask(folder, net, **options):
    """Lay a network out as MoMask does; returns its file."""
    for name in ("model", "meta"):
        (folder / name).mkdir(parents=True)
    options = {**net.args, "dataset_name": net.args["dataname"], "milestones": [150, 250], **options}
    lines = [f"{name}: {value}" for name, value in options.items() if name not in ("dataname", "quantizer")]
    head, tail = "------------ Options -------------", "-------------- End ----------------"
    (folder / "opt.txt").write_text("\n".join([head, *lines, tail]))
    for name, value in (("mean", 0.5), ("std", 2.0)):
        np.save(folder / "meta" / f"{name}.npy", np.full(263, value))
    state = {name.removeprefix("vqvae."): value for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [150, 250])
    torch.save({"vq_model": state, "opt_vq_model": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "ep": 3, "total_it": 70}, folder / "model" / "latest.tar")
    return folder / "model" / "latest.tar"


@pytest.mark.parametrize("shared", [False, True])
def test_momasks_files_load_with_no_flags(tmp_path, shared):
    net = build_residual(shared, vq_act="silu", dilation_growth_rate=2, vq_norm="LN")
    file = write_momask(tmp_path / "rvq", net)
    x = torch.randn(2, 16, 263)
    for path in (file, tmp_path / "rvq"):
        loaded = HumanVQVAE.from_checkpoint(path)
        assert torch.equal(loaded.encode(x), net.encode(x)) and torch.equal(loaded(x)[0], net(x)[0])
        assert loaded.args["shared_codebook"] is shared and loaded.args["num_quantizers"] == 3
        assert loaded.iteration == 70 and loaded.mean[0] == 0.5 and loaded.std[0] == 2.0
        assert loaded.remarks == ["network arguments read from opt.txt beside the checkpoint"]
    quantizer = HumanVQVAE.from_checkpoint(file).train().vqvae.quantizer
    before = quantizer.layers[0].codebook.clone()
    quantizer(torch.randn(2, 32, 8))  # its statistics start as of uniform use: no code is replaced at once
    assert (quantizer.layers[0].codebook - before).norm(dim=1).max() < 0.5 * before.norm(dim=1).max()


def test_an_argument_against_momasks_file_is_refused(tmp_path):
    file = write_momask(tmp_path / "rvq", build_residual(), num_quantizers=4)
    assert "num_quantizers 4 contradicts the file, which has 3" in refusal(file)
    (tmp_path / "rvq" / "opt.txt").unlink()
    assert "num_quantizers" in refusal(file, num_quantizers=2)
    assert HumanVQVAE.from_checkpoint(file).vqvae.quantizer.num_layers == 3  # the tensors tell as much
    assert "shared_codebook True" in refusal(file, shared_codebook=True)


def test_the_levels_of_finite_scalars_must_be_recorded(save):
    torch.manual_seed(0)
    args = SimpleNamespace(**{**SMALL, "quantizer": "fsq", "fsq_levels": [4, 3], "nb_code": 12})
    net, x = HumanVQVAE.from_args(args).eval(), torch.randn(2, 16, 263)
    loaded = HumanVQVAE.from_checkpoint(save({"net": net.state_dict(), "args": net.args}))
    assert torch.equal(loaded.encode(x), net.encode(x)) and loaded.nb_code == 12
    bare = save({"net": net.state_dict()})
    assert "fsq_levels" in refusal(bare)
    assert HumanVQVAE.from_checkpoint(bare, fsq_levels=[4, 3]).nb_code == 12
    assert "project_in.weight" in refusal(bare, fsq_levels=[4, 3, 2])
    assert "fsq_levels" in refusal(bare, fsq_levels=[4, 1])
    bare.with_name("opt.txt").write_text("quantizer: fsq\nfsq_levels: 4 3\n")
    assert "expected a list" in refusal(bare)


def test_averaged_weights_count_where_the_file_holds_them(save, net, weights):
    ema = {"vqvae.encoder.model.0.bias": torch.full((32,), 7.0)}
    loaded = HumanVQVAE.from_checkpoint(save({"net": weights, "ema": ema}))
    assert (loaded.vqvae.encoder.model[0].bias == 7).all()
    assert torch.equal(loaded.vqvae.encoder.model[0].weight, net.vqvae.encoder.model[0].weight)
    nan = {"vqvae.encoder.model.0.bias": torch.full((32,), torch.nan)}
    assert "encoder.model.0.bias holds NaN" in refusal(save({"net": weights, "ema": nan}))
