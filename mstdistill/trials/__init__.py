"""What is tried before the first step: a network by itself, and an experiment's networks together."""
