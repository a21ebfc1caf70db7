"""`python runtime/bench.py`: the verb bench of `python -m runtime` by a plain path."""

import sys
from pathlib import Path

if not __package__:  # run as a plain path: Python put runtime/ first, where our names would shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from runtime.benchmark.command import main
from runtime.command_line import exit_with_one_sentence

if __name__ == "__main__":
    exit_with_one_sentence(main)
