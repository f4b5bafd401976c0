"""Stopping a run at the end of a step, on all its ranks at the same one."""
import signal
import time

from training.distributed import largest
from utils.device import rank_and_world

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """Until released, notes the first signal and leaves the process alone; a second one has its usual effect, at once.

    Several ranks ask each other every `ask_every` steps, as asking waits for all of them.
    """

    def __init__(self, ask_every=1):
        self.ask_every, self.first, self.since = ask_every, 0, 0.0
        self.before = {number: signal.signal(number, self._note) for number in NUMBERS}

    def release(self):
        """Put the handlers back that were there before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if not self.first:
            self.first, self.since = number, time.monotonic()
        elif rank_and_world()[1] == 1 or time.monotonic() > self.since + 1:  # torchrun passes on a Ctrl-C that has come here by itself
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def stop(self, step):
        """The signal to stop for after `step`, the same on every rank; 0 for none."""
        if rank_and_world()[1] == 1:
            return self.first
        return largest([self.first])[0] if step % self.ask_every == 0 else 0
