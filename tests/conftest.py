import functools
import re

import pytest
import torch

from options.common import Parser
from tests.helpers import make_dataset
from utils.errors import UserError

torch.set_num_threads(1)
LONGEST = 200       # characters of a message
MESSAGES = []       # of every UserError and every refused command line since the last test


def note_messages(function):
    """Have a method that takes a message, UserError's or the parser's, keep it in MESSAGES too."""
    @functools.wraps(function)
    def noted(self, message, *args, **kwargs):
        MESSAGES.append(str(message))
        return function(self, message, *args, **kwargs)
    return noted


UserError.__init__ = note_messages(UserError.__init__)
Parser.error = note_messages(Parser.error)


@pytest.fixture(autouse=True)
def short_messages(tmp_path_factory):
    """Fail a test that meets a message of several lines or over LONGEST; temporary folders count as /data."""
    yield
    base = re.escape(str(tmp_path_factory.getbasetemp()))
    told = [re.sub(rf"{base}/[^/\s:;,'\"]+", "/data", message) for message in MESSAGES]
    MESSAGES.clear()
    wrong = [message for message in told if len(message) > LONGEST or "\n" in message]
    assert not wrong, f"{len(wrong[0])} characters: {wrong[0]}"


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
