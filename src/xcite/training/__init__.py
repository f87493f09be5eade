"""Training: the one loop, its schedules, checkpoints and run folders."""
