"""`python -m demo`: see `demo.app`."""

from demo.app import main
from runtime.command_line import exit_with_one_sentence

if __name__ == "__main__":
    exit_with_one_sentence(main)
