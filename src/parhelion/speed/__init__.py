"""Candidates timed in turns."""
