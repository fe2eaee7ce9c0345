"""What is encoded of a clip: its windows, and how they are read."""
