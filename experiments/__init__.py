"""Recipes: one file per paper method."""
