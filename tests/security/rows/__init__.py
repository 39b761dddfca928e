"""The attack and fault matrix: one module for each letter, and what they have in common."""
