"""What runs beside the stages: steering and watching a pipeline, from this process or from elsewhere."""
