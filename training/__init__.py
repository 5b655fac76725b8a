"""Training and evaluation of X-Pose; nothing at run time imports this package."""
