"""A ZenML orchestrator flavor that runs pipelines as Prefect flows."""
