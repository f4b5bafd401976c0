import pytest
import torch

from tests.helpers import make_dataset

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A small t2m set; tests that change files make their own."""
    return make_dataset(tmp_path_factory.mktemp("data") / "t2m")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_root):
    """The run folder of a small finished training."""
    from tests.helpers import small_args
    from train_vq import main
    out = tmp_path_factory.mktemp("trained")
    assert main(small_args(data_root, out, "--nb-vis", "2")) == 0
    return out / "run"
