"""Finders: what only a look at all clips together can tell, one file each."""
