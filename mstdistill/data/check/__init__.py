"""Looking data over, and how it is told to people."""
