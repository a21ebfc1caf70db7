"""TensorRT and TensorRT-RTX, which share one interface: the engine that serves, and what export shares with it."""
