"""Bounded queues, the stages that they join, and the pipeline that runs them."""
