"""What an experiment would do: its jobs, what of them is there already, and how long the rest takes on this machine."""
