"""Runners: phases in this process, or on Ray actors."""
