"""Clips whose decoded frames exceed the limit: operators process them in windows."""
