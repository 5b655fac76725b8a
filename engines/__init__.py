"""From pixels and prompts to poses: the X-Pose network, its kernels, backends and prompts."""

import os

# GNU OpenMP, which PyTorch's CPU builds use, reads this when PyTorch is first imported: how long a worker spins before
# it sleeps. Its own 300,000 rounds starve whatever else needs the cores, and bring a run by itself nothing.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
