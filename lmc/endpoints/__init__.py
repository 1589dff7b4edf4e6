"""Which networks are compared: trained apart from different seeds, or read from the user's own files."""
