"""Measurements against torch and others; nothing here is part of the installed package."""
