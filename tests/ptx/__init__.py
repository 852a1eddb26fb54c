"""A machine that runs compiled Triton kernels on the CPU, from their PTX: with real numbers, and every access checked."""
