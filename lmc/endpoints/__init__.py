"""Which networks are compared: trained from different seeds in one of several ways, or read from the user's files."""
