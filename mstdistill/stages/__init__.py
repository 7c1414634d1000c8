"""The stages: co-train teachers and student, specialise the teachers, distil; and the student alone, to compare."""
