"""The learner role."""
