"""Launchers: a training as processes on a Ray cluster."""
