"""The student in other runtimes' files: made, quantised, run beside the student, and judged."""
