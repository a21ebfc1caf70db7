"""Experiments around the trainer: each is a command of its own, and nothing else imports it but documents and tests."""
