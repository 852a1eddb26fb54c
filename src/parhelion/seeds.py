"""Random numbers that depend on a key alone: on what is being done, not on what was done before."""

import hashlib
import random

import numpy as np
import torch


def number(*key: str | int) -> int:
    """A 32-bit number that depends on `key` alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "big")


def seed_everything(*key: str | int) -> None:
    """Seed the global generators of random, numpy and torch, those of GPUs included, from `key`."""
    seed_cpu(*key)
    # torch.manual_seed without a GPU spends its time on noting who would have to seed one.
    if torch.accelerator.is_available():
        torch.manual_seed(number(*key))


def seed_cpu(*key: str | int) -> None:
    """Seed the global generators of random, numpy and torch on the CPU from `key`; GPUs are not touched."""
    seed = number(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
