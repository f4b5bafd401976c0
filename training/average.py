"""A moving average of the weights, which evaluates better than the weights themselves (arXiv 1803.05407)."""
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The moving average of a net's parameters (--ema-weights). decay: None for none, else below 1.

    The first steps decay faster, so that the untrained weights are soon forgotten.
    """

    def __init__(self, net, decay):
        self.parameters, self.decay = dict(net.named_parameters()) if decay else {}, decay
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self, step):
        """Move the average towards the weights after a step."""
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)([*self.values.values()], [*self.parameters.values()], step)

    @contextmanager
    def applied(self):
        """Give the net the averaged weights within a block, and its own back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for name, parameter in self.parameters.items():
            own = parameter.clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(own)

    def load_state_dict(self, state):
        """Take over the saved `values`."""
        for name, value in self.values.items():
            value.copy_(state[name])
