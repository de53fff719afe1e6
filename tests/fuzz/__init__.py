"""What nobody would send on purpose, or only on purpose."""
