"""One exception for everything a user can put right."""
import functools
import os
import sys


class UserError(Exception):
    """A mistake in the input, as one line of at most 200 characters: what was found, where, what to do.

    details: more lines, for the log.
    """

    def __init__(self, message, details=()):
        super().__init__(message)
        self.details = list(details)


def exit_cleanly(main):
    """Wrap a script's `main(argv)`: a UserError prints as one line on stderr and exits with code 2, Ctrl-C
    with 130; neither shows a traceback."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:  # `python eval_vq.py … | head`: the reader has gone, nothing is left to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)

    return wrapped
