"""A page where a person tries a run's student on what they draw, record or type."""
