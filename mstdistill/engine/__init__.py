"""The engine: one loop, checkpoints, seeds, launch checks, progress. It knows no stage and no task."""
