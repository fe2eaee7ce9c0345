"""Walking figures: skeleton, gait, limbs, and the key points they show."""
