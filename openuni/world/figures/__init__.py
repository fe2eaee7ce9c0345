"""Walking people: bodies, gait, limbs, and their key points."""
