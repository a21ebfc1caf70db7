"""`python -m training.dataset check`: an earlier spelling of `python -m training check`, which it runs."""

from runtime.command_line import exit_with_one_sentence
from training.__main__ import main

if __name__ == "__main__":
    exit_with_one_sentence(main)
