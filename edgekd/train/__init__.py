"""The one trainer: world, phases, references, checkpoints."""
