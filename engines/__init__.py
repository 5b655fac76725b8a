"""From pixels and prompts to poses: the X-Pose network, its kernels, backends and prompts."""
