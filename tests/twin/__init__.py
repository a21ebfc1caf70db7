"""A double of a machine with NVIDIA GPUs, for tests alone: `machines` configures it, `site` is what PYTHONPATH gets.

It proves that our code obeys the documented rules, never that a GPU is fast. torch.cuda and ONNX Runtime's CUDA
provider are not doubled: in the twin they see no GPU.
"""
