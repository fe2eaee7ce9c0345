"""Shared data layer: clips, video I/O, modalities, component contracts and corpus storage."""
