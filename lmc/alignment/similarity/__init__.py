"""How alike the units of two networks are: by their weights, and by what they answer to the same inputs."""
