"""What the command line runs: training tasks by name, and the demo."""
