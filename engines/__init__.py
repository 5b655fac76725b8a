"""From pixels and prompts to poses: the X-Pose network, its kernels, backends and prompts."""

import os

# GNU OpenMP, which PyTorch's CPU builds use, reads this when PyTorch is first imported: how long a worker spins before
# it sleeps. The default of 300,000 rounds takes the cores from other work and does not make a run faster.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
