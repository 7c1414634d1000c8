"""Recipes: one YAML per task."""
