"""A machine that runs compiled Triton kernels on the CPU, from their PTX, and checks every access to memory."""
