"""Training and evaluation of X-Pose. Nothing that runs in production imports this package."""
