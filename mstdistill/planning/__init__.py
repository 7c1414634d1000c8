"""What a recipe will need before it runs: memory, time and communication of each stage, and how to launch it."""
