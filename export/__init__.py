"""Checkpoints become judged files."""

import runtime  # noqa: F401  # before every library that reports its use
