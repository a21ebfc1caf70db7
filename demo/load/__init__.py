"""How much load the service bears, measured from outside on loopback: `python -m demo.load`."""
