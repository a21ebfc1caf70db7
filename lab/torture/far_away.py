"""`python -m lab.torture.far_away …`: `python -m demo …` to whom one address of this machine is a stranger's.

The programs of this machine have no share (`demo.service.shares`), and a campaign that stays on it would meet none.
"""

from collections.abc import Sequence

from demo.service import shares

ADDRESS = "127.0.0.66"  # on Linux all of 127.0.0.0/8 is this machine
NOBODY = "192.0.2.1"  # of those that are kept for examples: else all of loopback are proxies, who have no share either

_visitor_of = shares.visitor_of


def _or_far_away(client: Sequence | None) -> str:
    return ADDRESS if client and client[0] == ADDRESS else _visitor_of(client)


if __name__ == "__main__":
    shares.visitor_of = _or_far_away  # before others take it from there
    from demo import app
    from runtime.command_line import exit_with_one_sentence

    exit_with_one_sentence(app.main)
