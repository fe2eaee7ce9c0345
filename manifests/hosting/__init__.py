"""Operators in a Python environment of their own: a child process of the worker, started with that environment."""
