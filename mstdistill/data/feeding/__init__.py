"""What a step of training gets."""
