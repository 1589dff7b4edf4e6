"""One training loop for networks and curves, its optimisers, learning-rate schedules, checkpoints and history."""
