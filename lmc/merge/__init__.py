"""How more than two networks are brought together: each pair on its own, or all into one frame."""
