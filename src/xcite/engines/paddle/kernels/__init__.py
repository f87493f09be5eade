"""The compiled operators (`xcite.engines.kernels`) on Paddle's threads, products and tensors."""
