"""`python -m demo`: see `demo.app`."""

from demo.app import main
from runtime.errors import exit_with_one_sentence

if __name__ == "__main__":
    exit_with_one_sentence(main)
