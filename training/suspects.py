"""`python -m training.suspects`: an earlier spelling of `python -m training suspects`, which it runs."""

import sys

from runtime.command_line import exit_with_one_sentence
from training.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "suspects")
    exit_with_one_sentence(main)
