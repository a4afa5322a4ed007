"""What serves an operation: the torch reference, compiled kernels for the CPU, Triton and CUDA kernels for GPUs."""
