"""The compiled operators (`xcite.engines.kernels`) on PyTorch's threads and tensors."""
