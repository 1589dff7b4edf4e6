"""training/schedule"""
