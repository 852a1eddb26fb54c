"""Recipes: a Python function per run that returns a frozen `Recipe`, and what runs one."""
