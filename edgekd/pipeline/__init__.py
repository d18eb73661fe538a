"""Pipeline files: their schema, the plan, the runner, gates, manifest."""
