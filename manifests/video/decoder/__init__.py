"""The decoder process: untrusted media are read in a child process that can be ended from outside."""
