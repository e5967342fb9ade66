"""One adapter a simulator suite."""
